"""PocketSphinx as an engine: real recognition on any CPU, with the model that its wheel carries."""
