"""Who says what: each dialect's ids, state and error table, without I/O."""
