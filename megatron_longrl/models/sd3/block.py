"""A layer of the transformer: both streams, modulated by time and prompt."""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.models.flow.layers import FeedForward
from megatron_longrl.models.flow.linear import column_parallel
from megatron_longrl.models.flow.token_shards import TokenShards
from megatron_longrl.models.lora import LoraOptions
from megatron_longrl.models.sd3.attention import NORM_EPSILON, Attention


class Modulation(MegatronModule):
    """Vectors, ``count`` of a layer's width, through which time and prompt modulate it."""

    def __init__(self, config: TransformerConfig, tp: ProcessGroup, count: int) -> None:
        super().__init__(config)
        self.count = count
        width = config.hidden_size
        self.linear = column_parallel(config, tp, width, count * width, gather=True)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """[b, h] -> ``count`` of [b, h]."""
        return self.linear(F.silu(condition))[0].chunk(self.count, dim=1)


def normalized(tokens: Tensor) -> Tensor:
    """LayerNorm without weights, [s, b, h]."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPSILON)


def modulated(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens [s, b, h] by vectors [b, h]."""
    return normed * (1 + scale) + shift


class JointBlock(MegatronModule):
    """One layer.

    Args:
        is_last: the text is read only, and ends here.
        dual: the picture has a second attention among its own tokens, which never has adapters.
        lora: the options of the adapters.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tp: ProcessGroup,
        *,
        is_last: bool,
        dual: bool,
        lora: LoraOptions | None = None,
    ) -> None:
        super().__init__(config)
        self.is_last, self.dual = is_last, dual
        self.norm1 = Modulation(config, tp, 9 if dual else 6)
        self.norm1_context = Modulation(config, tp, 2 if is_last else 6)
        self.attn = Attention(config, tp, with_text=True, text_goes_on=not is_last, lora=lora)
        if dual:
            self.attn2 = Attention(config, tp, with_text=False, text_goes_on=False)
        self.ff = FeedForward(config, tp, lora)
        if not is_last:
            self.ff_context = FeedForward(config, tp, lora)

    def forward(
        self, picture: Tensor, text: Tensor, condition: Tensor, shards: TokenShards
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the layer; the text as it is after the last one.

        Args:
            picture: [s, b, h], this rank's tokens.
            text: [t, b, h].
            condition: [b, h].
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *second = self.norm1(condition)
        normed, normed_text = normalized(picture), normalized(text)
        if self.is_last:
            text_scale, text_shift = self.norm1_context(condition)
        else:
            text_shift, text_scale, text_gate, *of_text = self.norm1_context(condition)
        attended, attended_text = self.attn(
            modulated(normed, shift, scale), modulated(normed_text, text_shift, text_scale), shards
        )
        picture = picture + gate * attended
        if self.dual:
            shift, scale, gate = second
            picture = picture + gate * self.attn2(modulated(normed, shift, scale), None, shards)[0]
        inner = modulated(normalized(picture), mlp_shift, mlp_scale)
        picture = picture + mlp_gate * self.ff(inner)
        if not self.is_last:
            text = text + text_gate * attended_text
            shift, scale, gate = of_text
            text = text + gate * self.ff_context(modulated(normalized(text), shift, scale))
        return picture, text
