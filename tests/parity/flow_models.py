"""A flow-matching transformer beside diffusers', on one rank."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import export_named_tensors, local_parameters
from megatron_longrl.parallel.groups import ParallelGroups
from tests.tiny_flow_models import their_gradients


def check_velocities_and_gradients(
    model: torch.nn.Module,
    reference: torch.nn.Module,
    velocities: tuple[Tensor, Tensor],
    config: Config,
    groups: ParallelGroups,
    untrained: frozenset[str] = frozenset(),
) -> None:
    """Compare both sides.

    Args:
        velocities: ours and diffusers', of the same inputs.
        untrained: our parameters that are no parameters there.
    """
    ours, theirs = velocities
    assert (ours - theirs).abs().max() < 1e-4
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradients = their_gradients(reference, config, groups)
    own = dict(model.named_parameters())
    assert set(gradients) == set(own) - untrained
    for name, gradient in gradients.items():
        found = own[name].grad
        if found is None:  # of what the last layer does not use
            found = torch.zeros_like(gradient)
        scale = max(1.0, float(gradient.abs().max()))
        assert (found - gradient).abs().max() < 1e-5 * scale, name


def check_round_trip(
    model: torch.nn.Module, reference: torch.nn.Module, config: Config, groups: ParallelGroups
) -> None:
    """Weights that came from diffusers are written as they were."""
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
