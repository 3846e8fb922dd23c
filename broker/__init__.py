"""The compute: pools, grants, allocations, the ledger, runs, scheduling, launchers, checkpoints and publishing."""
