"""Runners start a trainer somewhere, as a process of this host or a job of Slurm, each attempt under its supervisor."""
