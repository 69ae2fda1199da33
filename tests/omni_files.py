"""What stands beside the weights in a Qwen2.5-Omni folder: a tokenizer of bytes, the chat template,
the processor's settings, by the names of the published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from tests.qwen_vl_files import MEANS, TURNS
from tests.real_tokenizers import OMNI_TOKENS, QWEN25_OMNI
from tests.tiny_omni import SYMBOLS


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A token for each byte, and the special ones: ``vocab_size`` and the ids of the latter by the
    names of ``config.json``."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2TokenizerFast(vocab=letters, merges=[], extra_special_tokens=OMNI_TOKENS)
    tokenizer.add_special_tokens({"additional_special_tokens": [*TURNS, *SYMBOLS.values()]})
    tokenizer.chat_template = QWEN25_OMNI
    tokenizer.save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(symbol) for name, symbol in SYMBOLS.items()}
    return {"vocab_size": len(tokenizer), **ids}


def write_processor(
    folder: Path, patch: int, bins: int, seconds: int, pixels: dict[str, int]
) -> None:
    """Settings of images, videos and sound in one file, as published.

    Args:
        seconds: to which transformers pads sound; published are 300.
        pixels: the budget of images.
    """
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "Qwen2_5OmniProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **MEANS["qwen2_5_vl"],
        **pixels,
        "feature_size": bins,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": seconds,
        "n_samples": seconds * 16_000,
        "nb_max_frames": seconds * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "dither": 0.0,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN25_OMNI}))
