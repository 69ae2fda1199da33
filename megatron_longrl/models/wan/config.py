"""The fields of Wan, by the names that diffusers gives them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from megatron_longrl.config.section import Architecture, CountInt, PositiveInt, Unit
from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.models.flow_section import FlowSection


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
    """Positions of tokens that the model knows along each of time, height and width."""

    @property
    def most_tokens_a_side(self) -> int:
        """The positions along one axis."""
        return self.rope_max_seq_len
