"""The speech-to-text server: one core, several engines, every protocol that clients already speak."""
