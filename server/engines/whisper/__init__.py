"""Whisper as an engine: faster-whisper's models, heard as a stream by decoding a moving window again and again."""
