"""Shared memory, and tensors in files of it."""
