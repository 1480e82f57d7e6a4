"""Compiles training steps for chips that are not here, and reads what the programs will cost."""
