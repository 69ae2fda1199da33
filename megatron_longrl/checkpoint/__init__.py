"""Checkpoints: Megatron's distributed ones, Hugging Face folders, and the mapping between the two."""
