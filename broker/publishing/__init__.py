"""Checkpoints on their way to the Hub, and the disk that they leave."""
