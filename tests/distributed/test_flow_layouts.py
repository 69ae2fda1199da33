"""Loss and every gradient of a flow-matching policy's step on two ranks are those of diffusers' on
one; tolerance 1e-5 of a tensor's largest entry, in fp32."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from megatron_longrl.models.sd3.policy import ADAPTED as OF_SD3
from megatron_longrl.models.wan.policy import ADAPTED as OF_WAN
from megatron_longrl.parallel.groups import init_parallel
from megatron_longrl.platforms import platform
from tests import tiny_sd3, tiny_wan
from tests.distributed.flow_twin import check
from tests.tiny_sd3 import ODD, SQUARE
from tests.tiny_wan import FILM, FRAME

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tensor_model_parallel_size": 2},
    "MR-SP2": {"context_parallel_size": 2},
    "DP2": {},
}
KINDS = ("flow matching", "step")


FAMILIES = {"sd3": (tiny_sd3, ODD), "wan": (tiny_wan, FILM)}


@pytest.mark.parametrize("tiny, size", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients(
    kind: str, layout: dict[str, Any], tiny: ModuleType, size: tuple[int, ...]
) -> None:
    check(kind, size, tiny=tiny, **layout)


@pytest.mark.parametrize("tiny, size", [(tiny_sd3, SQUARE), (tiny_wan, FRAME)], ids=FAMILIES)
@pytest.mark.parametrize("name", ["TP2", "MR-SP2"])
def test_recomputed_layers(name: str, tiny: ModuleType, size: tuple[int, ...]) -> None:
    again = {"recompute_granularity": "full", "micro_batch_size": 2}
    check("step", size, tiny=tiny, **LAYOUTS[name], **again)


@pytest.mark.parametrize(
    "tiny, size, adapted",
    [(tiny_sd3, SQUARE, OF_SD3), (tiny_wan, FILM, OF_WAN)],
    ids=FAMILIES,
)
@pytest.mark.parametrize("name", ["TP2", "MR-SP2"])
def test_adapters(
    name: str, tiny: ModuleType, size: tuple[int, ...], adapted: tuple[str, ...]
) -> None:
    targets = [*adapted, "linear_fc1"]
    check("step", size, tiny=tiny, **LAYOUTS[name], lora_rank=3, lora_target_modules=targets)


SIZES = {
    "square": (tiny_sd3, SQUARE),
    "odd": (tiny_sd3, ODD),
    "one token": (tiny_sd3, (2, 2)),
    "frame": (tiny_wan, FRAME),
    "film": (tiny_wan, FILM),
    "one token of a film": (tiny_wan, (1, 2, 2)),
}


@pytest.mark.parametrize("tiny, size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ["TP2", "MR-SP2"])
def test_velocities(name: str, tiny: ModuleType, size: tuple[int, ...]) -> None:
    platform.prepare()
    config = tiny.config(**LAYOUTS[name])
    groups = init_parallel(config.parallel, config.model)
    reference = tiny.diffusers_model()
    model, given = tiny.our_model(reference, config, groups), tiny.inputs(size)
    with torch.no_grad():
        difference = model(**given) - tiny.their_velocity(reference, given)
    assert difference.abs().max() < 1e-4
