"""The measuring side: replays datasets against a server and says how accurate, fast and stable it was."""
