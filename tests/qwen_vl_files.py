"""What stands beside the weights in a Qwen-VL folder: a tokenizer of bytes, the processor's
settings, by the names of the published checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MEANS = {
    "qwen2_5_vl": {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "qwen3_vl": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
}


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A token for each byte, and the special ones: ``vocab_size`` and the ids of the latter."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2TokenizerFast(vocab=letters, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": [*TURNS, *SPECIAL.values()]})
    tokenizer.save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(symbol) for name, symbol in SPECIAL.items()}
    return {"vocab_size": len(tokenizer), **ids}


def write_processor(folder: Path, family: str, patch: int, pixels: Mapping[str, int]) -> None:
    """Settings of images and videos.

    Args:
        pixels: the budget, ``min_pixels`` and ``max_pixels``.
    """
    name = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[family]
    shared = {
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **MEANS[family],
        "processor_class": name,
    }
    images = {"image_processor_type": "Qwen2VLImageProcessor", **shared}
    if family == "qwen2_5_vl":
        _write(folder / "preprocessor_config.json", {**images, **pixels})
        return
    edges = ("shortest_edge", "longest_edge")
    size = {"size": dict(zip(edges, pixels.values(), strict=True))}
    _write(folder / "preprocessor_config.json", {**images, **size})
    videos = {"video_processor_type": "Qwen3VLVideoProcessor", **shared, **size}
    _write(folder / "video_preprocessor_config.json", videos)


def _write(path: Path, settings: Mapping[str, object]) -> None:
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
