"""Qwen3: text models with norms on queries and keys."""
