"""Norms that Transformer Engine fuses into projections: in tables and in checkpoints as ever."""

from __future__ import annotations

import pytest
import torch

from megatron_longrl.checkpoint.dist_reader import checkpoint_key
from megatron_longrl.conversion.mapping import (
    export_named_tensors,
    import_named_tensors,
    local_parameters,
    mapping_table,
)

LAYER = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight": "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias": "self_attention.linear_qkv.bias",
    "self_attention.linear_proj.weight": "self_attention.linear_proj.weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight": "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight": "mlp.linear_fc2.weight",
}
"""The parameters of a layer, local and of Transformer Engine's LayerNormLinear and Linear."""


def fused(gpt):
    """A tree of modules that only holds the parameters, by the names of the fused layers."""
    tree = torch.nn.Module()
    for name, parameter in gpt.named_parameters():
        for ours, theirs in LAYER.items():
            name = name.replace(ours, theirs) if name.startswith("decoder.layers.") else name
        *path, leaf = name.split(".")
        module = tree
        for step in path:
            if step not in dict(module.named_children()):
                module.add_module(step, torch.nn.Module())
            module = module.get_submodule(step)
        module.register_parameter(leaf, torch.nn.Parameter(parameter.detach().clone()))
    for number, layer in enumerate(gpt.decoder.layers):
        tree.get_submodule(f"decoder.layers.{number}").layer_number = layer.layer_number
    return tree


@pytest.fixture
def both(tiny, build):
    """The local language model, and the same weights by the fused names."""
    gpt = build(tiny()).policy.module
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter)
    return gpt, fused(gpt)


def test_the_names_are_different_where_they_should_be(both):
    local, other = (dict(module.named_parameters()) for module in both)
    assert "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight" in other
    assert "decoder.layers.1.mlp.linear_fc1.layer_norm_weight" in other
    assert len(local) == len(other)
    assert len(local.keys() - other.keys()) == 4, "two norms in each of two layers"


def test_both_have_the_names_of_the_table(both, tiny):
    local, other = (local_parameters({"language_model": module}) for module in both)
    assert local.keys() == other.keys()
    mappings = mapping_table(tiny()).expand(["llm"])
    assert other.keys() == {mapping.megatron_param for mapping in mappings if mapping.exported}
    for name in local:
        assert torch.equal(local[name], other[name]), name


def test_both_export_and_import_the_same(both, tiny, groups):
    _, other = both
    exported = [
        dict(export_named_tensors({"language_model": module}, tiny(), groups, ["llm"]))
        for module in both
    ]
    assert exported[0].keys() == exported[1].keys()
    for name in exported[0]:
        assert torch.equal(exported[0][name], exported[1][name]), name
    norm = "llm/model.layers.1.post_attention_layernorm.weight"
    parameter = other.get_parameter("decoder.layers.1.mlp.linear_fc1.layer_norm_weight")
    assert torch.equal(exported[1][norm], parameter)
    source = {name: 2 * tensor for name, tensor in exported[0].items()}
    import_named_tensors({"language_model": other}, tiny(), groups, source.__getitem__)
    assert torch.equal(parameter, 2 * exported[0][norm])


def test_checkpoints_have_the_fused_names_already(both, groups):
    local, other = both
    shards = local.sharded_state_dict(
        prefix="language_model.", metadata={"dp_cp_group": groups.dp_cp}
    )
    keys = {s.key for s in shards.values() if not s.key.endswith("_extra_state")}
    # Core stacks the layers of a block under one key.
    numbered = [f"language_model.{name}" for name, _ in other.named_parameters()]
    stacked = {
        name.replace("layers.0.", "layers.").replace("layers.1.", "layers.") for name in numbered
    }
    # The tied output layer may be stored a second time.
    assert keys - {"language_model.output_layer.weight"} == stacked
    for name in local_parameters({"language_model": other}):
        assert checkpoint_key(name)[0] in keys
