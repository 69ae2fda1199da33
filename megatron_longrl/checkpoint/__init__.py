"""Megatron checkpoints: saving, loading at any layout, verification and retention."""
