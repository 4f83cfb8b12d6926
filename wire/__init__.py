"""What the bytes of every protocol mean, in both directions, without I/O."""
