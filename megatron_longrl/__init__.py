"""Reinforcement learning of vision-language models on long videos, on Megatron-Core."""
