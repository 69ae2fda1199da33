"""One step of a flow-matching policy in any layout, beside diffusers' model on one rank."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import export_named_tensors
from megatron_longrl.models.lora import ADAPTER
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.flow.losses import StepLoss, flow_matching_loss
from megatron_longrl.training.flow.rows import CleanRows, NoisyRows, StepRows, TextEmbedding
from megatron_longrl.training.flow.velocity_step import VelocityStep
from megatron_longrl.training.model import build_model
from megatron_longrl.training.train_step import TrainStep
from tests import tiny_sd3
from tests.distributed.adapters import (
    Modules,
    expected_gradients,
    make_them_matter,
    whole_adapters,
)
from tests.distributed.layouts import largest_error
from tests.tiny_flow_models import take_weights

TOLERANCE = 1e-5
ROWS = 4
"""Of a step, over all replicas."""
STILL = {"lr": 0.0, "clip_grad": 0.0, "use_distributed_optimizer": False, "train_iters": 1}
"""Gradients stay in the buffers."""

STEP_LOSS = StepLoss("flow_sde", 0.7, "mean", 1e-4, 1e-4, beta=0.1, guard=False)


def rows(tiny: ModuleType, size: tuple[int, ...]) -> dict[str, Tensor]:
    """The inputs of all rows, and what their losses need."""
    given: dict[str, Tensor] = tiny.inputs(size, ROWS)
    generator = torch.Generator().manual_seed(5)
    for name in ("targets", "reached", "reference"):
        given[name] = torch.randn(given["latents"].shape, generator=generator)
    given["advantages"] = torch.randn(ROWS, generator=generator)
    given["sigmas"] = given["times"] / 1000
    return given


def batch_of(kind: str, given: dict[str, Tensor], start: int, stop: int) -> NoisyRows:
    """Rows ``start`` to ``stop`` as a micro-batch."""
    part = {name: tensor[start:stop] for name, tensor in given.items()}
    pairs = zip(part["text"], part["pooled"], strict=True)
    common: dict[str, Any] = {
        "latents": part["latents"],
        "sigmas": part["sigmas"],
        "prompts": tuple(TextEmbedding(*pair) for pair in pairs),
    }
    if kind == "flow matching":
        return CleanRows(velocities=part["targets"], **common)
    return StepRows(
        ends=part["sigmas"] * 0.9,
        second=0.96,
        reached=part["reached"],
        advantages=part["advantages"],
        # Of no policy: the ratio is far from 1 and not clipped where the advantage is negative.
        old_logprobs=torch.full((stop - start,), -5.0),
        old_means=torch.zeros_like(part["latents"]),
        reference_velocities=part["reference"],
        **common,
    )


def loss_of(kind: str) -> Callable[..., Any]:
    return flow_matching_loss if kind == "flow matching" else STEP_LOSS


def check(kind: str, size: tuple[int, ...], *, tiny: ModuleType = tiny_sd3, **layout: Any) -> None:
    """Loss and gradients of a step in a layout equal those of diffusers' model on one rank.

    Args:
        tiny: the module of a tiny model of a family, on both sides.
    """
    platform.prepare()
    micro_batch = layout.pop("micro_batch_size", 1)
    config = tiny.config(**STILL, **layout)
    groups = init_parallel(config.parallel, config.model)
    reference = tiny.diffusers_model()
    model = build_model(config, groups)
    take_weights(model.policy, reference, config, groups)
    if config.lora.rank:
        make_them_matter(model.modules, config, groups)
        _take_merged(reference, model.modules, config, groups)
    given = rows(tiny, size)
    share = ROWS // groups.dp.size()
    first = share * groups.dp.rank()
    batches = [
        batch_of(kind, given, start, start + micro_batch)
        for start in range(first, first + share, micro_batch)
    ]
    step = TrainStep(model, None, groups, VelocityStep(model.policy.module))
    result = step.train(batches, {}, None, loss_of(kind))
    velocity = tiny.their_velocity(reference, given)
    total, count, report = loss_of(kind)(batch_of(kind, given, 0, ROWS), velocity.reshape(-1))
    (total / count).backward()
    expected = report.metrics.means()
    assert abs(result.metrics["lm loss"] - expected["lm loss"]) <= TOLERANCE * abs(
        expected["lm loss"]
    )
    theirs = {
        f"transformer/{name}": torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in reference.named_parameters()
    }
    if config.lora.rank:
        _check_adapters(model.modules, config, groups, theirs)
        return
    squares = [p.grad.square().sum() for p in reference.parameters() if p.grad is not None]
    assert abs(result.grad_norm - float(sum(squares)) ** 0.5) <= TOLERANCE * result.grad_norm
    own = {name: p.main_grad.clone() for name, p in _trained(model.policy.module)}
    with torch.no_grad():
        for name, parameter in _trained(model.policy.module):
            parameter.copy_(own[name])
    exported = dict(export_named_tensors(model.modules, config, groups))
    assert largest_error(exported, theirs) <= TOLERANCE


def _trained(model: torch.nn.Module) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@torch.no_grad()
def _take_merged(
    reference: torch.nn.Module, modules: Modules, config: Config, groups: ParallelGroups
) -> None:
    """Give diffusers' model the weights with the adapters in them."""
    held = reference.state_dict()
    for name, tensor in export_named_tensors(modules, config, groups):
        held[name.removeprefix("transformer/")].copy_(tensor)


def _check_adapters(
    modules: Modules, config: Config, groups: ParallelGroups, dense: dict[str, Tensor]
) -> None:
    """Gradients of adapters are those of the merged weights by the chain rule; nothing else has
    any."""
    trained = {name for name, _ in _trained(modules["policy"])}
    assert trained and all(name.endswith(ADAPTER) for name in trained)
    held = whole_adapters(modules, config, groups)
    expected = expected_gradients(config, held, dense, config.lora.scale)
    found = whole_adapters(modules, config, groups, lambda p: p.main_grad)  # type: ignore[attr-defined]
    pairs = {
        f"{name} {m}": g for name, two in found.items() for m, g in zip("AB", two, strict=True)
    }
    assert largest_error(pairs, expected) <= TOLERANCE
