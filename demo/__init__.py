"""The main job, played end to end on this machine with no account: `make demo`."""
