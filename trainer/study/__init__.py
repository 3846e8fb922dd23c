"""Studying a run: analyses that read its checkpoints one after the other and write numbers of each."""
