"""Processes of a run: the parent that starts one process a rank, what a rank does, and the ranks' layout."""
