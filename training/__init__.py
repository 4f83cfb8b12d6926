"""How nano is made: a small Voxtral Realtime model, trained from scratch on synthetic speech in a small language."""
