"""Other people's programs as runs: their description, their environment, and what holds them while they run."""
