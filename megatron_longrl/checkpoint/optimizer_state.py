"""What megatron-core's optimizers need around saving and loading, to go on exactly.

Tensors (fp32 copies, moments) travel in the distributed checkpoint. Around that, with torch's
AdamW:

* state must exist before it can be saved or be the target of a load, and core 0.16.1 creates it
  without the step count (optimizer/__init__.py:391) or, for the distributed optimizer, not at all;
* the distributed optimizer looks for each parameter's step count in the loaded tensors, where it is
  not (optimizer/distrib_optimizer.py:940 against :2102);
* after a load all parameters share one step tensor (optimizer/distrib_optimizer.py:812), which each
  of them would then increment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer

_KEPT_FROM_CHECKPOINT = frozenset({"params", "step"})


def members(optimizer: MegatronOptimizer) -> Iterator[MegatronOptimizer]:
    """The optimizers of a chain, or the optimizer itself; without those that own no parameter."""
    for member in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(member, "is_stub_optimizer", False):
            yield member


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Give every parameter the state of step 0, where it has none yet."""
    for member in members(optimizer):
        inner = member.optimizer
        if member.init_state_fn is not None:
            member.init_state_fn(inner, member.config)
        if isinstance(inner, (torch.optim.Adam, torch.optim.AdamW)):
            for state in inner.state.values():
                state.setdefault("step", torch.tensor(0.0, dtype=torch.float32))


def load_state(optimizer: MegatronOptimizer, loaded: dict[Any, Any]) -> None:
    """Restore what ``optimizer.sharded_state_dict`` described and the checkpoint has filled in."""
    chain = getattr(optimizer, "chained_optimizers", [optimizer])
    states = [loaded] if len(chain) == 1 else [loaded[index] for index in range(len(chain))]
    for member, state in zip(chain, states, strict=True):
        parameter_state = state.pop("param_state", None)
        member.load_state_dict(state)
        steps = _take_steps(member)
        if parameter_state is not None:
            member.load_parameter_state_from_fully_reshardable(parameter_state)
        for values, step in steps:
            values["step"] = step.clone()
    allocate_state(optimizer)


def _take_steps(member: MegatronOptimizer) -> list[tuple[dict[str, Any], torch.Tensor]]:
    states = [s for s in member.optimizer.state.values() if isinstance(s.get("step"), torch.Tensor)]
    return [(state, state.pop("step")) for state in states]


def hyperparameters(optimizer: MegatronOptimizer) -> list[dict[str, Any]]:
    """Learning rates, betas and so on of all groups, as the configuration has set them."""
    return [
        {key: value for key, value in group.items() if key not in _KEPT_FROM_CHECKPOINT}
        for member in members(optimizer)
        for group in member.optimizer.param_groups
    ]


def restore_hyperparameters(optimizer: MegatronOptimizer, kept: list[dict[str, Any]]) -> None:
    """Put back what :func:`hyperparameters` gave: the configuration rules, not the checkpoint."""
    groups = [g for member in members(optimizer) for g in member.optimizer.param_groups]
    for group, values in zip(groups, kept, strict=True):
        group.update(values)
