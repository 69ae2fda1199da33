"""The fields of Stable Diffusion 3, by the names that diffusers gives them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from megatron_longrl.config.section import Architecture, CountInt, PositiveInt, Unit
from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.models.flow.section import FlowSection


class SD3Section(FlowSection):
    """sd3: the transformer of Stable Diffusion 3 and 3.5

    A checkpoint brings these fields, as it does --num-layers, --hidden-size, --num-attention-heads
    and --qk-layernorm.
    """

    required: ClassVar[tuple[str, ...]] = ("joint_attention_dim", "pooled_projection_dim")

    joint_attention_dim: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the text embeddings, one for each token of a prompt."""

    pooled_projection_dim: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the text embedding of a whole prompt."""

    latent_sample_size: Annotated[PositiveInt, Unit("latents"), Architecture(most=WIDEST)] = 128
    """Side of the latents whose positions the table of positions counts in whole steps."""

    pos_embed_max_size: Annotated[PositiveInt, Unit("tokens"), Architecture(most=WIDEST)] = 96
    """Rows, and columns, of the table of positions. A picture has those in its middle."""

    dual_attention_layers: Annotated[tuple[CountInt, ...], Architecture()] = ()
    """Layers, counted from 0, with a second attention among the picture's tokens alone (Stable
    Diffusion 3.5 medium)."""

    @property
    def most_tokens_a_side(self) -> int:
        """The rows of the table of positions."""
        return self.pos_embed_max_size
