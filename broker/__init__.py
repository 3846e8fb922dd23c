"""The compute: pools, grants, allocations, the ledger, runs, scheduling, runners, checkpoints and publishing."""
