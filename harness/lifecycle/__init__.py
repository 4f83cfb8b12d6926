"""A server that goes on running when the terminal is closed: its record, its log, who watches it, how it is started and ended."""
