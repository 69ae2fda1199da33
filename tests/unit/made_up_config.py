"""A small configuration for the tests of every folder."""

from __future__ import annotations

from typing import Any

from megatron_longrl.config import Config


def make_config(**changes: Any) -> Config:
    """A valid configuration."""
    values = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "vision_image_size": 28,
        "vision_patch_size": 7,
        "vision_hidden_size": 16,
        "vision_num_layers": 3,
        "vision_num_attention_heads": 2,
        "vision_ffn_hidden_size": 24,
        "seq_length": 64,
        "rollout_max_tokens": 8,
        "grpo_group_size": 2,
        "vocab_size": 2000,
    }
    return Config.of(values | changes)
