"""Qwen3-VL: a tower with resampled positions and DeepStack, interleaved M-RoPE, Qwen3 language
model."""
