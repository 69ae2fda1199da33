"""Qwen2.5-Omni's thinker: an audio tower beside Qwen2.5-VL's vision tower, positions in time that
films and their sound share, Qwen2.5 language model."""
