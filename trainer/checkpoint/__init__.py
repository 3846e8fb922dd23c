"""Checkpoints: their folders, and what each holds."""
