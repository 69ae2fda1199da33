"""What megatron-core's optimizers need around saving and loading, to go on exactly.

Tensors (fp32 copies, moments) travel in the distributed checkpoint. Around that, with torch's
AdamW:

* state must exist before it can be saved or be the target of a load, and core 0.16.1 creates it
  without the step count (optimizer/__init__.py:391) or, for the distributed optimizer, not at all;
* after a load all parameters share one step tensor (optimizer/distrib_optimizer.py:812), which each
  of them
  would then increment.
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


def separate_steps(optimizer: MegatronOptimizer) -> None:
    """Give every parameter its own step count again."""
    for member in members(optimizer):
        for state in member.optimizer.state.values():
            step = state.get("step")
            if isinstance(step, torch.Tensor):
                state["step"] = step.clone()
    allocate_state(optimizer)


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
