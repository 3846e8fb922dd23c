"""The shared parallel trainer. Stands alone: `python -m trainer --help`."""
