"""Qwen2.5-VL: a tower of windows, M-RoPE with absolute time, Qwen2.5 language model."""
