"""The fields of Wan, by the names that diffusers gives them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from megatron_longrl.config.section import Architecture, CountInt, PositiveInt, Unit
from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.models.flow.section import FlowSection


class WanSection(FlowSection):
    """wan: the transformer of Wan 2.1 and 2.2

    A checkpoint brings these fields, as it does --num-layers, --hidden-size, --ffn-hidden-size,
    --num-attention-heads and --norm-epsilon.
    """

    required: ClassVar[tuple[str, ...]] = ("text_dim",)

    text_dim: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the text embeddings, one for each token of a prompt."""

    freq_dim: Annotated[PositiveInt, Unit("channels"), Architecture(most=WIDEST)] = 256
    """Sines and cosines of the time."""

    cross_attn_norm: Annotated[bool, Architecture()] = True
    """LayerNorm, with weights, before the attention to the text."""

    rope_max_seq_len: Annotated[PositiveInt, Unit("tokens"), Architecture(most=WIDEST)] = 1024
    """Positions along each of time, height and width that diffusers has in a table. Here they are
    computed, of any number."""

    text_max_tokens: Annotated[PositiveInt, Unit("tokens")] = 512
    """Tokens of a prompt: a longer one is cut, and zeros follow a shorter one, as diffusers
    does."""

    film_frames: Annotated[PositiveInt, Unit("frames")] = 81
    """Frames of the films that are sampled or trained on: one more than a multiple of 4.
    Pre-training takes the first ones of a longer film."""

    film_fps: Annotated[PositiveInt, Unit("frames per second")] = 16
    """Frames per second of the films that validation writes."""

    @property
    def frames(self) -> int | None:
        """Frames of a film."""
        return self.film_frames

    @property
    def fps(self) -> int:
        """Frames per second of a film."""
        return self.film_fps
