"""The frozen parts around the transformer, as diffusers and transformers have them: the text
encoders and the autoencoder of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.models.diffusers_folder import DiffusersFolder
from megatron_longrl.platforms import platform

_PIPELINE = "StableDiffusion3Pipeline"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


class SD3Parts:
    """Text encoders and autoencoder of a folder; each is loaded when it is first asked for.

    Raises:
        UserError: the folder is not one of diffusers with a pipeline of Stable Diffusion 3.
    """

    def __init__(self, folder: str | Path, text_max_tokens: int) -> None:
        self._folder, self._text_max_tokens = DiffusersFolder(folder), text_max_tokens
        self._pipeline: Any = None
        self._autoencoder: Any = None
        self._folder.check(_PIPELINE, (*_TEXT_ENCODERS, *_TOKENIZERS, "vae"))

    def widths(self) -> dict[str, int]:
        """Return the channels of texts and latents, by the fields that have to be equal."""
        width = self._folder.width
        return {
            "joint_attention_dim": width("text_encoder_3", "d_model", 512),
            "pooled_projection_dim": width("text_encoder", "projection_dim", 512)
            + width("text_encoder_2", "projection_dim", 512),
            "latent_channels": width("vae", "latent_channels", 4),
        }

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """float32 [n, t, d] of all tokens, and [n, e] of whole prompts."""
        pipeline = self._text_pipeline()
        tokens, _, pooled, _ = pipeline.encode_prompt(
            *[list(texts)] * 3,
            do_classifier_free_guidance=False,
            max_sequence_length=self._text_max_tokens,
            device=platform.device,
        )
        return tokens.float(), pooled.float()

    @property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels that a latent stands for."""
        blocks: int = len(self._vae().config.block_out_channels)
        return 2 ** (blocks - 1)

    @property
    def frames_per_latent(self) -> int:
        """A picture is one frame."""
        return 1

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, c, h, w] -> uint8 [b, height, width, 3]; rounded as diffusers does."""
        vae = self._vae()
        plain = latents.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pictures = (vae.decode(plain, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
        return (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu()

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """uint8 [b, height, width, 3] -> float32 latents [b, c, h, w], the means of the
        autoencoder's distribution."""
        vae = self._vae()
        pixels = pictures.to(platform.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        means = vae.encode(pixels).latent_dist.mode()
        return (means - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def _text_pipeline(self) -> Any:
        if self._pipeline is None:
            from diffusers import StableDiffusion3Pipeline

            self._pipeline = self._folder.load(StableDiffusion3Pipeline, transformer=None, vae=None)
            for name in _TEXT_ENCODERS:
                getattr(self._pipeline, name).requires_grad_(False).eval()
        return self._pipeline

    def _vae(self) -> Any:
        if self._autoencoder is None:
            from diffusers import AutoencoderKL

            loaded = self._folder.load(AutoencoderKL, "vae")
            self._autoencoder = loaded.requires_grad_(False).eval().float()
        return self._autoencoder
