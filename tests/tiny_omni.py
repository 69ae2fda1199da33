"""Tiny Qwen2.5-Omni models of random weights, by transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny_qwen_vl import MERGE, PATCH, TEXT, VISION

VOCABULARY = 140
SPECIAL = {
    "audio_token_index": 120,
    "image_token_index": 121,
    "video_token_index": 122,
    "audio_start_token_id": 123,
    "audio_end_token_id": 124,
    "vision_start_token_id": 125,
    "vision_end_token_id": 126,
}
SYMBOLS = {
    "audio_token_index": "<|AUDIO|>",
    "image_token_index": "<|IMAGE|>",
    "video_token_index": "<|VIDEO|>",
    "audio_start_token_id": "<|audio_bos|>",
    "audio_end_token_id": "<|audio_eos|>",
    "vision_start_token_id": "<|vision_bos|>",
    "vision_end_token_id": "<|vision_eos|>",
}
BINS = 128


def settings(vocab_size: int = VOCABULARY, patch: int = PATCH, **changes: Any) -> Any:
    """Of a thinker."""
    from transformers import Qwen2_5OmniThinkerConfig

    rope = {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [4, 6, 6]}
    vision = {name: value for name, value in VISION.items() if name != "out_hidden_size"}
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 40,
            "num_mel_bins": BINS,
            "output_dim": TEXT["hidden_size"],
        },
        vision_config={
            **vision,
            "out_hidden_size": TEXT["hidden_size"],
            "patch_size": patch,
            "window_size": 2 * patch * MERGE,
            "fullatt_block_indexes": [1, 3],
        },
        text_config={
            **TEXT,
            "max_position_embeddings": 8192,
            "vocab_size": vocab_size,
            "rope_parameters": rope,
        },
        **{**SPECIAL, **changes},
    )


def thinker(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model.

    Args:
        changes: ``vocab_size``, and other settings, such as ids of special tokens.
    """
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    torch.manual_seed(5)
    model = Qwen2_5OmniThinkerForConditionalGeneration(settings(**changes)).eval()
    for name, parameter in model.named_parameters():
        # Features are many, large, and all of one sign in silence.
        mean, deviation = (0.0, 0.05) if "conv1" in name else (0.05, 0.2)
        torch.nn.init.normal_(parameter, mean=mean, std=deviation)
    return model.to(dtype)
