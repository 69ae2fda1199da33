"""Reinforcement learning of vision-language models on long videos, on Megatron-Core."""

__version__ = "0.1.0"
