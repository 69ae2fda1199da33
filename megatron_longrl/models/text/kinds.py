"""The architectures of language models that megatron-core's layers compute, as transformers names
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config import Config


@dataclass(frozen=True)
class LanguageKind:
    """One architecture."""

    model_type: str
    architecture: str
    add_qkv_bias: bool
    qk_layernorm: bool
    only: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Settings of which one value is implemented; it is also the default where none is written."""
    max_position_embeddings: int = 32768
    """Default of the setting."""
    head_dim: int | None = None
    """Default of the setting; None derives it from the width."""


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
            head_dim=128,
        ),
        LanguageKind(
            "llama",
            "LlamaForCausalLM",
            add_qkv_bias=False,
            qk_layernorm=False,
            only={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
            max_position_embeddings=2048,
        ),
    )
}
"""By ``model_type``."""


LLAMA3_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Settings of Llama 3.1's scaling beside its factor; all its checkpoints have these."""


def language_kind(config: Config) -> LanguageKind:
    """The architecture that a configuration describes.

    Raises:
        UserError: transformers has none like it.
    """
    traits = (config.add_qkv_bias, config.qk_layernorm)
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
