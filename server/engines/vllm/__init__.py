"""Voxtral on vLLM, in process."""
