"""How many streams a server sustains within given limits: the search, what a rung is judged by, and the answer."""
