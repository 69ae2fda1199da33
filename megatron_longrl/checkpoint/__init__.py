"""Checkpoints: Megatron's, Hugging Face's, and the mapping between the two."""
