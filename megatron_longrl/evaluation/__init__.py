"""Benchmarks with their published prompts and rules, sweeps over frames, and their results."""
