"""What watches every hearing without having a part in it."""
