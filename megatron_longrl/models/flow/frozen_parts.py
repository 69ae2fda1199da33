"""The parts around a flow-matching transformer that are never trained: text encoders and an
autoencoder, which each family brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from megatron_longrl.config.names import flag
from megatron_longrl.errors import UserError
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.models.policy import find_policy
from megatron_longrl.registry import loaded


class FrozenParts(Protocol):
    """The frozen parts of a family, see :class:`~megatron_longrl.models.sd3.frozen.SD3Parts`."""

    @property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels that a latent stands for."""

    @property
    def frames_per_latent(self) -> int:
        """Frames that a latent stands for; the first latent of a film stands for one."""

    def widths(self) -> Mapping[str, int]:
        """Return the channels of texts and latents, by the fields that have to be equal."""

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """float32 [n, t, d] of all tokens, and [n, e] of whole prompts."""

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """uint8 [b, height, width, 3] -> float32 latents [b, c, h, w]; of films both have frames
        before the height."""

    def decode(self, latents: Tensor) -> Tensor:
        """The way back."""


def frozen_parts(family: str, section: FlowSection) -> FrozenParts:
    """The frozen parts of a family, from ``--diffusers-folder``.

    Raises:
        UserError: the folder is not one of this family, or its parts have other widths than the
            transformer.
    """
    policy = find_policy(family)
    assert policy is not None and policy.frozen_parts is not None, "a family that draws has them"
    build: Callable[[str, int], FrozenParts] = loaded(policy.frozen_parts)
    parts = build(section.diffusers_folder or "", section.text_max_tokens)
    for name, width in parts.widths().items():
        if getattr(section, name) != width:
            raise UserError(
                f"{name} ({getattr(section, name)}) is not the {width} channels that the parts in "
                f"--diffusers-folder {section.diffusers_folder} give: choose a folder that fits "
                f"the model, or {flag(name)} {width} for a new one"
            )
    return parts
