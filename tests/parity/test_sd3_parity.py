"""The transformer of Stable Diffusion 3 beside diffusers', on one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from megatron_longrl.conversion.mapping import export_named_tensors, local_parameters
from megatron_longrl.models.sd3.embeddings import position_table
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model
from tests import tiny_sd3
from tests.tiny_sd3 import ODD, SQUARE


@pytest.fixture(scope="module")
def groups() -> ParallelGroups:
    platform.prepare()
    config = tiny_sd3.config()
    return init_parallel(config.parallel, config.model)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd3.5 medium": ({}, {}),
    "sd3.5 large": ({"dual_attention_layers": []}, {"dual_attention_layers": ()}),
    "sd3": (
        {"dual_attention_layers": [], "qk_layernorm": False},
        {"dual_attention_layers": (), "qk_norm": None},
    ),
    "recomputed": ({"recompute_granularity": "full"}, {}),
}


@pytest.mark.parametrize("size", [SQUARE, ODD], ids=["square", "odd"])
@pytest.mark.parametrize("ours, theirs", KINDS.values(), ids=KINDS)
def test_velocities_and_gradients(
    ours: dict[str, Any], theirs: dict[str, Any], size: tuple[int, int], groups: ParallelGroups
) -> None:
    config, reference = tiny_sd3.config(**ours), tiny_sd3.diffusers_model(**theirs)
    model = tiny_sd3.our_model(reference, config, groups)
    given = tiny_sd3.inputs(size)
    expected = tiny_sd3.their_velocity(reference, given)
    velocity = model(**given)
    assert (velocity - expected).abs().max() < 1e-4
    velocity.square().sum().backward()
    expected.square().sum().backward()
    gradients = tiny_sd3.their_gradients(reference, config, groups)
    own = dict(model.named_parameters())
    assert set(gradients) == set(own) - {"pos_embed.pos_embed"}
    for name, theirs_grad in gradients.items():
        ours_grad = own[name].grad
        if ours_grad is None:  # of what the last layer does not use
            ours_grad = torch.zeros_like(theirs_grad)
        scale = max(1.0, float(theirs_grad.abs().max()))
        assert (ours_grad - theirs_grad).abs().max() < 1e-5 * scale, name


def test_a_round_trip_is_exact(groups: ParallelGroups) -> None:
    config, reference = tiny_sd3.config(), tiny_sd3.diffusers_model()
    model = tiny_sd3.our_model(reference, config, groups)
    assert set(local_parameters({"policy": model})) == {
        f"policy.{name}" for name, _ in model.named_parameters()
    }
    state = reference.state_dict()
    exported = {
        name.removeprefix("transformer/"): tensor
        for name, tensor in export_named_tensors({"policy": model}, config, groups)
    }
    assert sorted(exported) == sorted(state)
    assert all(torch.equal(exported[name], state[name]) for name in state)


def test_table_of_positions_is_diffusers_own() -> None:
    for settings in ({}, {"sample_size": 8}):
        model = SD3Transformer2DModel(
            **{"sample_size": 16, "num_layers": 1, "attention_head_dim": 16} | settings,
            num_attention_heads=2,
            caption_projection_dim=32,
            pos_embed_max_size=12,
        )
        base = settings.get("sample_size", 16) // 2
        assert torch.equal(model.pos_embed.pos_embed, position_table(12, 32, base))


def test_initial_velocities_are_0(groups: ParallelGroups) -> None:
    model = build_model(tiny_sd3.config(), groups, train=False).policy.module
    given = tiny_sd3.inputs(SQUARE)
    assert not model(**given).any()
    blocks = dict(model.named_parameters())
    assert blocks["transformer_blocks.1.attn.linear_qkv.weight"].std() > 0.05
