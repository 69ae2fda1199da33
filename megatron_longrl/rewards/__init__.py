"""Rewards of responses, one file each, and what computes them beside generation.

Nothing here but the runner imports torch: the processes that score must start at once.
"""
