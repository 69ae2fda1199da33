"""Megatron training steps and the two loops that are made of them."""
