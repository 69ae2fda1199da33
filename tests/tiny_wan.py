"""A tiny Wan on both sides: ours, and diffusers' on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.config import Config
from tests.tiny_flow_models import our_model, random_inputs, without_zeros

__all__ = ["our_model"]

FIELDS: dict[str, Any] = {
    "model_family": "wan",
    "seq_length": 64,
    "num_layers": 2,
    "hidden_size": 28,
    "ffn_hidden_size": 48,
    "num_attention_heads": 2,
    "text_dim": 40,
    "freq_dim": 32,
    "rope_max_seq_len": 32,
}
"""Of the configuration: heads of 14 channels, of which 6 are of time, 4 of height and of width."""

FRAME, FILM = (1, 6, 10), (5, 6, 4)
"""Frames, heights and widths of latents, of a picture and of a film of 17 frames. They have 15 and
30 tokens."""


def config(**more: Any) -> Config:
    """The tiny model's, with other fields changed."""
    return Config.of({**FIELDS, **more})


def diffusers_model(**more: Any) -> torch.nn.Module:
    """With the same sizes and random weights, none of them 0."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(7)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 14,
        "text_dim": 40,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return without_zeros(WanTransformer3DModel(**(settings | more)))


def inputs(
    size: tuple[int, int, int], batch: int = 2, seed: int = 0, channels: int = 16
) -> dict[str, Tensor]:
    """Latents, times, text of 5 tokens, and nothing of whole prompts."""
    return random_inputs((batch, channels, *size), text=40, pooled=0, seed=seed)


def their_velocity(theirs: torch.nn.Module, given: dict[str, Tensor]) -> Tensor:
    """diffusers' prediction."""
    velocity: Tensor = theirs(
        hidden_states=given["latents"],
        timestep=given["times"],
        encoder_hidden_states=given["text"],
    ).sample
    return velocity


WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "square", "goes", "left", "right", "up")


def write_folder(folder: Path, transformer: torch.nn.Module | None = None, **vae: Any) -> None:
    """A pipeline of diffusers whose autoencoder and text encoder have random weights.

    Args:
        vae: other settings of the autoencoder.
    """
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(5)
    settings = {
        "base_dim": 3,
        "z_dim": 16,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    text = UMT5Config(
        vocab_size=len(WORDS),
        d_model=40,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
    )
    WanPipeline(
        tokenizer=_tokenizer(),
        text_encoder=UMT5EncoderModel(text),
        vae=AutoencoderKLWan(**(settings | vae)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer or diffusers_model(),
    ).save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
