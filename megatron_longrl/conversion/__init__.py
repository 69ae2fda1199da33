"""Checkpoints of Hugging Face, PEFT and Megatron, converted both ways."""
