"""The frozen parts around the transformer, as diffusers and transformers have them: the text
encoder and the autoencoder of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.models.diffusers_folder import DiffusersFolder
from megatron_longrl.platforms import platform

_PIPELINE = "WanPipeline"
_PARTS = ("text_encoder", "tokenizer", "vae")
_OF_PICTURES = ("WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline")


class WanParts:
    """Text encoder and autoencoder of a folder; each is loaded when it is first asked for.

    Raises:
        UserError: the folder is not one of diffusers with a pipeline of Wan from text.
    """

    def __init__(self, folder: str | Path, text_max_tokens: int) -> None:
        self._folder, self._text_max_tokens = DiffusersFolder(folder), text_max_tokens
        self._pipeline: Any = None
        self._autoencoder: Any = None
        _check_conditions(self._folder)
        self._folder.check(_PIPELINE, _PARTS)

    def widths(self) -> dict[str, int]:
        """Return the channels of texts and latents, by the fields that have to be equal."""
        return {
            "text_dim": self._folder.width("text_encoder", "d_model", 512),
            "latent_channels": self._folder.width("vae", "z_dim", 16),
        }

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """float32 [n, t, d] of all tokens, zeros behind the last one of a text, and [n, 0] of whole
        prompts, which Wan does not read."""
        pipeline = self._text_pipeline()
        tokens, _ = pipeline.encode_prompt(
            list(texts),
            do_classifier_free_guidance=False,
            max_sequence_length=self._text_max_tokens,
            device=platform.device,
        )
        return tokens.float(), tokens.new_zeros(len(texts), 0, dtype=torch.float32)

    @property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels that a latent stands for."""
        return int(self._vae().config.scale_factor_spatial)

    @property
    def frames_per_latent(self) -> int:
        """Frames that a latent stands for; the first latent stands for one."""
        return int(self._vae().config.scale_factor_temporal)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, c, f, h, w] -> uint8 [b, frames, height, width, 3]; rounded as diffusers
        does. Films are decoded one by one, and each latent after the other."""
        vae = self._vae()
        mean, deviation = self._statistics()
        films = []
        for film in (latents.float() * deviation + mean).split(1):
            pixels = (vae.decode(film, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
            films.append((pixels.permute(0, 2, 3, 4, 1) * 255).round().to(torch.uint8).cpu())
        return torch.cat(films)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """uint8 [b, frames, height, width, 3] -> float32 latents [b, c, f, h, w], the means of the
        autoencoder's distribution."""
        mean, deviation = self._statistics()
        pixels = pictures.to(platform.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return (self._vae().encode(pixels).latent_dist.mode() - mean) / deviation

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents as the autoencoder makes them, [1, c, 1, 1, 1] each."""
        config = self._vae().config
        both = torch.tensor(
            [config.latents_mean, config.latents_std], dtype=torch.float32, device=platform.device
        )
        mean, deviation = both.view(2, 1, -1, 1, 1, 1)
        return mean, deviation

    def _text_pipeline(self) -> Any:
        if self._pipeline is None:
            from diffusers import WanPipeline

            self._pipeline = self._folder.load(
                WanPipeline, transformer=None, transformer_2=None, vae=None
            )
            self._pipeline.text_encoder.requires_grad_(False).eval()
        return self._pipeline

    def _vae(self) -> Any:
        if self._autoencoder is None:
            from diffusers import AutoencoderKLWan

            loaded = self._folder.load(AutoencoderKLWan, "vae")
            self._autoencoder = loaded.requires_grad_(False).eval().float()
        return self._autoencoder


def _check_conditions(folder: DiffusersFolder) -> None:
    """Refuse pipelines of Wan that take more than a text, or have two transformers."""
    if folder.pipeline in _OF_PICTURES:
        raise UserError(
            f"--diffusers-folder: {folder.index_file} is of {folder.pipeline}, which is given "
            "pictures or films as conditions: wan is trained from text alone, give a folder of "
            f"{_PIPELINE}"
        )
    boundary = folder.index.get("boundary_ratio")
    if folder.pipeline == _PIPELINE and boundary is not None:
        raise UserError(
            f"--diffusers-folder: {folder.index_file} has two transformers (boundary_ratio "
            f"{boundary}), as Wan 2.2 A14B: give a folder of Wan 2.1, or of Wan 2.2 TI2V-5B, which "
            "have one"
        )
