"""Using a checkpoint: evaluate it, score a text with it, generate text from it."""
