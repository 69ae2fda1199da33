"""Shared memory between the trainer, its ranks and an engine."""
