"""Runners start a trainer somewhere: as a local process or as a Slurm job, each attempt under its supervisor."""
