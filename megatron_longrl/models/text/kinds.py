"""The architectures of language models that megatron-core's layers compute, as transformers names
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config.model import ModelSection


@dataclass(frozen=True)
class Defaults:
    """The values that transformers takes for settings of a language model that its file does not
    have."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    """Number of key/value heads; None takes the number of attention heads."""
    head_dim: int | None = None
    """Channels of a head; None derives them from the width."""
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class LanguageKind:
    """One architecture."""

    model_type: str
    architecture: str
    add_qkv_bias: bool
    qk_layernorm: bool
    only: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Settings of which one value is implemented; it is also the default where none is written."""
    defaults: Defaults = Defaults()


KINDS = {
    kind.model_type: kind
    for kind in (
        LanguageKind(
            "qwen2",
            "Qwen2ForCausalLM",
            add_qkv_bias=True,
            qk_layernorm=False,
            only={"hidden_act": "silu", "use_sliding_window": False},
        ),
        LanguageKind(
            "qwen3",
            "Qwen3ForCausalLM",
            add_qkv_bias=False,
            qk_layernorm=True,
            only={"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
            defaults=Defaults(head_dim=128),
        ),
        LanguageKind(
            "llama",
            "LlamaForCausalLM",
            add_qkv_bias=False,
            qk_layernorm=False,
            only={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
            defaults=Defaults(
                vocab_size=32000,
                intermediate_size=11008,
                num_key_value_heads=None,
                max_position_embeddings=2048,
            ),
        ),
    )
}
"""Kinds of language models by ``model_type``."""

QWEN2_5_VL_DEFAULTS = Defaults(
    vocab_size=152064,
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
    rope_theta=1000000.0,
)
"""Defaults of the Qwen2 language model in a Qwen2.5-VL checkpoint."""

QWEN2_5_OMNI_DEFAULTS = Defaults(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    rope_theta=1000000.0,
)
"""Defaults of the Qwen2 language model in a Qwen2.5-Omni checkpoint."""

QWEN3_VL_DEFAULTS = Defaults(head_dim=128, max_position_embeddings=128000, rope_theta=500000.0)
"""Defaults of the Qwen3 language model in a Qwen3-VL checkpoint."""


def language_kind(model: ModelSection) -> LanguageKind:
    """The architecture that a configuration describes.

    Raises:
        UserError: transformers has none like it.
    """
    traits = (model.add_qkv_bias, model.qk_layernorm)
    for kind in KINDS.values():
        if (kind.add_qkv_bias, kind.qk_layernorm) == traits:
            return kind
    known = "; ".join(
        f"{k.model_type}: add_qkv_bias {k.add_qkv_bias}, qk_layernorm {k.qk_layernorm}"
        for k in KINDS.values()
    )
    raise UserError(
        f"no language model of transformers has add_qkv_bias {traits[0]} and qk_layernorm "
        f"{traits[1]}: choose from {known}"
    )
