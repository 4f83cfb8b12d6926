"""How requests of the REST surface arrive."""
