"""GPU time: pools, the grants of sponsors, allocations to projects, and the ledger of every GPU-second."""
