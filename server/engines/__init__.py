"""What hears: every engine behind one small interface."""
