"""Tiny Qwen-VL models of random weights, by transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 131
PATCH, MERGE, TIMES = 4, 2, 2
TEXT: dict[str, Any] = {
    "hidden_size": 128,  # heads of 32 channels, for which vLLM has kernels
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION = {
    "hidden_size": 32,
    "out_hidden_size": 128,
    "depth": 4,
    "num_heads": 2,
    "intermediate_size": 40,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": TIMES,
}
SPECIAL = {
    "image_token_id": 120,
    "video_token_id": 121,
    "vision_start_token_id": 122,
    "vision_end_token_id": 123,
}


def qwen2_5_vl(vocab_size: int = VOCABULARY, **special: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [4, 6, 6]}
    settings = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": vocab_size, "rope_parameters": rope},
        # Windows of 2 x 2 blocks: frames of 3 x 5 blocks have windows of four sizes.
        vision_config={
            **VISION,
            "window_size": 2 * PATCH * MERGE,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=False,
        **{**SPECIAL, **special},
    )
    return Qwen2_5_VLForConditionalGeneration(settings)


def qwen3_vl(vocab_size: int = VOCABULARY, **special: int) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {
        "rope_type": "default",
        "rope_theta": 50000.0,
        "mrope_section": [8, 4, 4],
        "mrope_interleaved": True,
    }
    settings = Qwen3VLConfig(
        text_config={
            **TEXT,
            "vocab_size": vocab_size,
            "head_dim": 32,
            "rope_parameters": rope,
            "tie_word_embeddings": True,
        },
        vision_config={
            **VISION,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 2],
        },
        tie_word_embeddings=True,
        **{**SPECIAL, **special},
    )
    return Qwen3VLForConditionalGeneration(settings)


MODELS = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}


def hugging_face(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A model.

    Args:
        settings: ``vocab_size``, and ids of special tokens, other than the usual ones.
    """
    torch.manual_seed(5)
    model = MODELS[family](**settings).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.05, std=0.2)
    return model.to(dtype)
