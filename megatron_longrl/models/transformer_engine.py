"""The language model's layers made of Transformer Engine's modules, where it is installed.

Its context parallelism takes the place of :mod:`megatron_longrl.parallel.attention`. It supports
causal sequences in zigzag order, and no mask: rows are a prompt and one response, padded at the
end, where no token that counts looks. Nothing here has run, see docs/cuda.md.

core's wrappers are imported late, and without Transformer Engine they are placeholders that build
nothing: :func:`check_installed` comes first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config.model import ModelSection


def check_installed(model: ModelSection) -> None:
    """Needs no process group.

    Raises:
        UserError: Transformer Engine is asked for, and megatron-core cannot import it.
    """
    from megatron.core.extensions.transformer_engine import HAVE_TE

    if model.transformer_impl == "transformer_engine" and not HAVE_TE:
        raise UserError(
            "--transformer-impl transformer_engine needs the package transformer-engine, which "
            f"megatron-core cannot import here ({_reason()}): on a machine with NVIDIA GPUs "
            "install it as docs/install.md says or take docker/Dockerfile; else give "
            "--transformer-impl local"
        )


def _reason() -> str:
    """Return the reason why core has gone on without Transformer Engine, which core does not
    report."""
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it loads by itself, in a version that megatron-core does not take"


def fused_layer_spec(qk_layernorm: bool = False) -> ModuleSpec:
    """A pre-norm transformer layer; each norm is a part of the projection that follows it."""
    from megatron.core.extensions.transformer_engine import (
        TEDotProductAttention,
        TELayerNormColumnParallelLinear,
        TENorm,
        TERowParallelLinear,
    )

    qk_norm = TENorm if qk_layernorm else IdentityOp
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=TELayerNormColumnParallelLinear,
                    core_attention=TEDotProductAttention,
                    linear_proj=TERowParallelLinear,
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=IdentityOp,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=TELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def fused_block_spec(num_layers: int, qk_layernorm: bool = False) -> TransformerBlockSubmodules:
    """``num_layers`` layers and the final norm."""
    from megatron.core.extensions.transformer_engine import TENorm

    return TransformerBlockSubmodules(
        layer_specs=[fused_layer_spec(qk_layernorm)] * num_layers, layer_norm=TENorm
    )
