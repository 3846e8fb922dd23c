"""Checkpoints: when they are due, saving and loading them, their metadata, resuming and forking."""
