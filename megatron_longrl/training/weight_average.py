"""The moving average of the weights that a run trains, which validation and generation may use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor, nn

from megatron_longrl.checkpoint.averaged import AVERAGE
from megatron_longrl.conversion.mapping import unwrap


class WeightAverage:
    """An exponential moving average, in float32, of the trained weights of one module.

    It is a :class:`~megatron_longrl.training.loop.FurtherModel`: checkpoints hold it beside the
    model, at any layout.

    Args:
        name: the name of the module in checkpoints.
        module: the module, wrapped or not; what is frozen in it has no average.
        decay: the part of the average that an update keeps, from 0 to 1.
        interval: steps from one update to the next.
    """

    def __init__(self, name: str, module: nn.Module, decay: float, interval: int) -> None:
        self._decay, self._interval = decay, interval
        self._averages = _Averages(unwrap(module))
        self.modules: Mapping[str, nn.Module] = {f"{name}{AVERAGE}": self._averages}
        self.optimizers: Mapping[str, MegatronOptimizer] = {}

    def begin(self, policy: Any) -> None:
        """Take the present weights as the average."""
        self._averages.move(1.0)

    def restore_schedule(self, iteration: int) -> None:
        """Do nothing: updates depend on the number of the step alone."""

    def update(self, iteration: int) -> None:
        """Move the average towards the weights after a step, if its number asks for it."""
        if (iteration + 1) % self._interval == 0:
            self._averages.move(1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the module the averages within the block."""
        pairs = self._averages.pairs
        own = [parameter.detach().clone() for parameter, _ in pairs]
        with torch.no_grad():
            for parameter, average in pairs:
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, own, strict=True):
                    parameter.copy_(value)


class _Averages(nn.Module):
    """The averages as checkpoints see them: with the names and shards of the trained weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._of = (module,)  # not a part of this module
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._values = {name: p.detach().float().clone() for name, p in self._trained.items()}

    @property
    def pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each trained parameter, and its average."""
        return [(parameter, self._values[name]) for name, parameter in self._trained.items()]

    @torch.no_grad()
    def move(self, part: float) -> None:
        """Move every average a part of the way to its weight."""
        for parameter, average in self.pairs:
            average.lerp_(parameter.float(), part)

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:  # type: ignore[override]
        """The averages by the names of their weights."""
        return {f"{prefix}{name}": value for name, value in self._values.items()}

    def sharded_state_dict(self, prefix: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The shards of core's description of the weights, with the averages in their place."""
        described = self._of[0].sharded_state_dict(prefix=prefix, metadata=metadata)  # type: ignore[operator]
        return {
            f"{prefix}{name}": _with_data(described[f"{prefix}{name}"], value)
            for name, value in self._values.items()
        }


def _with_data(described: Any, value: Tensor) -> Any:
    if isinstance(described, ShardedTensor):
        return replace(described, data=value, dtype=value.dtype)
    return replace(described, data=value)  # a factory, which makes shards of it
