"""Loss and every gradient of a flow-matching policy's step on two ranks are those of diffusers' on
one; tolerance 1e-5 of a tensor's largest entry, in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_longrl.parallel.groups import init_parallel
from megatron_longrl.platforms import platform
from tests import tiny_sd3
from tests.distributed.flow_twin import check
from tests.tiny_sd3 import ODD, SQUARE

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tensor_model_parallel_size": 2},
    "MR-SP2": {"context_parallel_size": 2},
    "DP2": {},
}
KINDS = ("flow matching", "step")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients(kind: str, layout: dict[str, Any]) -> None:
    check(kind, ODD, **layout)


@pytest.mark.parametrize("name", ["TP2", "MR-SP2"])
def test_recomputed_layers(name: str) -> None:
    check("step", SQUARE, **LAYOUTS[name], recompute_granularity="full", micro_batch_size=2)


@pytest.mark.parametrize("name", ["TP2", "MR-SP2"])
@pytest.mark.parametrize("size", [SQUARE, ODD, (2, 2)], ids=["square", "odd", "one token"])
def test_velocities(name: str, size: tuple[int, int]) -> None:
    platform.prepare()
    config = tiny_sd3.config(**LAYOUTS[name])
    groups = init_parallel(config.parallel, config.model)
    reference = tiny_sd3.diffusers_model()
    model, given = tiny_sd3.our_model(reference, config, groups), tiny_sd3.inputs(size)
    with torch.no_grad():
        difference = model(**given) - tiny_sd3.their_velocity(reference, given)
    assert difference.abs().max() < 1e-4
