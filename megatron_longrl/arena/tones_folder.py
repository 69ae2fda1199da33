"""A tiny Qwen2.5-Omni thinker of random weights for figures and tones, as transformers saves it,
with a tokenizer that has the game's phrases as tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_longrl.arena.command_line import OneLineParser, number, run_command
from megatron_longrl.arena.tones import SYMBOLS

HIDDEN = 128
PATCH = 16
_DEVIATION = 0.06
"""The deviation of random weights: a narrow model learns several times slower from the usual
0.02."""
_TURNS = ("<|im_start|>", "<|im_end|>")
_MEDIA = {
    "audio_token": "<|AUDIO|>",
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
}
"""Symbols of media by the attributes of the tokenizer under which transformers' processor looks for
them."""
_SETTING = {
    "audio_token": "audio_token_index",
    "image_token": "image_token_index",
    "video_token": "video_token_index",
    "audio_bos_token": "audio_start_token_id",
    "audio_eos_token": "audio_end_token_id",
    "vision_bos_token": "vision_start_token_id",
    "vision_eos_token": "vision_end_token_id",
}
"""Settings of a thinker that hold their ids."""
_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role + '\\n' }}\
{% if message.content is string %}{{ message.content }}\
{% else %}{% for part in message.content %}\
{% if part.type == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>\
{% elif part.type == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>\
{% elif part.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\
{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>{{ '\\n' }}\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"""


def write_folder(folder: Path, seed: int) -> int:
    """Write the folder; returns the number of the model's parameters."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder)
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(_settings(ids))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=_DEVIATION)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    model.save_pretrained(folder)
    _write_processor(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """A token for each byte, phrase and symbol; returns settings of the model: ``vocab_size``,
    ``eos_token_id``, and the ids of the symbols of media."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2TokenizerFast(
        vocab=letters, merges=[], eos_token=_TURNS[1], extra_special_tokens=_MEDIA
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*_TURNS, *_MEDIA.values()]})
    tokenizer.add_tokens(list(SYMBOLS))
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    found = {_SETTING[name]: symbol for name, symbol in _MEDIA.items()}
    found["eos_token_id"] = _TURNS[1]
    ids = {name: int(tokenizer.convert_tokens_to_ids(symbol)) for name, symbol in found.items()}
    return {"vocab_size": len(tokenizer), **ids}


def _settings(ids: dict[str, int]) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    of_media = {name: ids[name] for name in _SETTING.values()}
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "output_dim": HIDDEN,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "window_size": 2 * PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "vocab_size": ids["vocab_size"],
            "eos_token_id": ids["eos_token_id"],
            "rope_parameters": {
                "rope_type": "default",
                # Of a film, seconds are to be told apart, not hours.
                "rope_theta": 1000.0,
                "mrope_section": [8, 4, 4],
            },
        },
        **of_media,
    )


def _write_processor(folder: Path) -> None:
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "Qwen2_5OmniProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_pixels": (2 * PATCH) ** 2,
        "max_pixels": (8 * PATCH) ** 2,
        "feature_size": 128,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 400,
        "dither": 0.0,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = OneLineParser(prog="python -m megatron_longrl.arena.tones_folder", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=number(int, 0, 2**63), default=1234, help="of the weights")
    return run_command(
        parser, lambda args: f"{write_folder(args.output, args.seed):,} parameters", argv
    )


if __name__ == "__main__":
    sys.exit(main())
