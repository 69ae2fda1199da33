"""What can be known of Transformer Engine's layers where it is not: parts, names, the error."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from megatron.core.extensions import transformer_engine as core
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp

from megatron_longrl.errors import UserError
from megatron_longrl.models.language import language_block_spec, language_transformer_config
from megatron_longrl.models.norms import TorchNorm
from megatron_longrl.models.transformer_engine import check_installed
from megatron_longrl.parallel.attention.module import MaskedAttention
from megatron_longrl.training.runtime import build_runtime
from tests.unit.made_up_config import make_config

TE = "transformer_engine"


def test_layers_are_made_of_cores_wrappers():
    """Where Transformer Engine is missing they are core's placeholders, each one of its own."""
    config = make_config(transformer_impl=TE, num_layers=4, pipeline_model_parallel_size=2)
    block = language_block_spec(config.lora, config.model, config.parallel)
    assert block.layer_norm is core.TENorm
    assert len(block.layer_specs) == 2
    layer = block.layer_specs[0].submodules
    assert layer.input_layernorm is layer.pre_mlp_layernorm is IdentityOp
    assert not layer.sharded_state_dict_keys_map
    attention = layer.self_attention
    assert attention.params == {"attn_mask_type": AttnMaskType.causal}
    assert attention.submodules.linear_qkv is core.TELayerNormColumnParallelLinear
    assert attention.submodules.core_attention is core.TEDotProductAttention
    assert attention.submodules.linear_proj is core.TERowParallelLinear
    assert layer.mlp.submodules.linear_fc1 is core.TELayerNormColumnParallelLinear
    assert layer.mlp.submodules.linear_fc2 is core.TERowParallelLinear


def test_layers_are_local_unless_told_otherwise():
    block = language_block_spec(make_config().lora, make_config().model, make_config().parallel)
    assert block.layer_norm is TorchNorm
    attention = block.layer_specs[0].submodules.self_attention
    assert attention.params == {"attn_mask_type": AttnMaskType.arbitrary}
    assert attention.submodules.core_attention is MaskedAttention


@pytest.mark.parametrize("exchange", ["all_gather", "a2a", "p2p"])
def test_core_is_told_whose_layers_and_which_exchange(exchange):
    config = make_config(
        transformer_impl=TE, cp_comm_type=exchange, context_parallel_size=2, bf16=True
    )
    told = language_transformer_config(config)
    assert (told.transformer_impl, told.cp_comm_type) == (TE, exchange)
    assert language_transformer_config(make_config()).transformer_impl == "local"


@pytest.mark.skipif(core.HAVE_TE, reason="Transformer Engine is installed")
def test_a_missing_package_is_named_before_any_process_group():
    assert not dist.is_initialized()
    with pytest.raises(UserError, match=r"package transformer-engine.*--transformer-impl local"):
        build_runtime(make_config(transformer_impl=TE), "sft")
    assert not dist.is_initialized()
    check_installed(make_config().model)
