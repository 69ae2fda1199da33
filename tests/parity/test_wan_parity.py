"""The transformer of Wan beside diffusers', on one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_longrl.conversion.mapping import export_named_tensors, local_parameters
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model
from tests import tiny_wan
from tests.tiny_wan import FILM, FRAME


@pytest.fixture(scope="module")
def groups() -> ParallelGroups:
    platform.prepare()
    config = tiny_wan.config()
    return init_parallel(config.parallel, config.model)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2.1": ({}, {}),
    "2.2 5B": ({"latent_channels": 48}, {"in_channels": 48, "out_channels": 48}),
    "without norms": ({"cross_attn_norm": False}, {"cross_attn_norm": False}),
    "other epsilon": ({"norm_epsilon": 0.01}, {"eps": 0.01}),
    "recomputed": ({"recompute_granularity": "full"}, {}),
}


@pytest.mark.parametrize("size", [FRAME, FILM], ids=["frame", "film"])
@pytest.mark.parametrize("ours, theirs", KINDS.values(), ids=KINDS)
def test_velocities_and_gradients(
    ours: dict[str, Any], theirs: dict[str, Any], size: tuple[int, int, int], groups: ParallelGroups
) -> None:
    config, reference = tiny_wan.config(**ours), tiny_wan.diffusers_model(**theirs)
    model = tiny_wan.our_model(reference, config, groups)
    given = tiny_wan.inputs(size, channels=theirs.get("in_channels", 16))
    expected = tiny_wan.their_velocity(reference, given)
    velocity = model(**given)
    assert (velocity - expected).abs().max() < 1e-4
    velocity.square().sum().backward()
    expected.square().sum().backward()
    gradients = tiny_wan.their_gradients(reference, config, groups)
    own = dict(model.named_parameters())
    assert set(gradients) == set(own)
    for name, theirs_grad in gradients.items():
        scale = max(1.0, float(theirs_grad.abs().max()))
        assert (own[name].grad - theirs_grad).abs().max() < 1e-5 * scale, name


def test_a_time_for_each_token_is_that_of_all(groups: ParallelGroups) -> None:
    """As the pipeline of Wan 2.2 TI2V-5B gives it where no picture is a condition."""
    config, reference = tiny_wan.config(), tiny_wan.diffusers_model()
    model, given = tiny_wan.our_model(reference, config, groups), tiny_wan.inputs(FILM)
    every = given["times"][:, None].expand(-1, 30)
    with torch.no_grad():
        expected = tiny_wan.their_velocity(reference, {**given, "times": every})
        assert (model(**given) - expected).abs().max() < 1e-4


def test_what_bf16_keeps_in_float32(groups: ParallelGroups) -> None:
    from diffusers import WanTransformer3DModel

    kept = WanTransformer3DModel._keep_in_fp32_modules
    model = build_model(tiny_wan.config(bf16=True), groups, train=False).policy.module
    raised = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    expected = {name for name, _ in model.named_parameters() if set(kept) & set(name.split("."))}
    assert raised == expected and len(raised) > 2
    velocity = model(**tiny_wan.inputs(FILM))
    assert velocity.dtype == torch.bfloat16


def test_a_round_trip_is_exact(groups: ParallelGroups) -> None:
    config, reference = tiny_wan.config(), tiny_wan.diffusers_model()
    model = tiny_wan.our_model(reference, config, groups)
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


def test_initial_velocities_are_0(groups: ParallelGroups) -> None:
    model = build_model(tiny_wan.config(), groups, train=False).policy.module
    assert not model(**tiny_wan.inputs(FRAME)).any()
    weights = dict(model.named_parameters())
    assert weights["blocks.1.attn1.linear_qkv.weight"].std() > 0.05
    assert weights["blocks.1.scale_shift_table"].std() > 0.05
