"""Runs of the trainer: launch, attempts, control, settlement, and what they measured."""
