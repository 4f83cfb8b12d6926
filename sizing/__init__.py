"""How much of a GPU a Voxtral Realtime model takes, and how many streams that leaves room for: arithmetic alone, no I/O but one file."""
