"""The frozen reference model of the KL term: the weights that RL started from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ReferenceWeights:
    """A copy of a module's parameters that can stand in for them.

    Args:
        module: the policy's language model, whose present weights become the reference.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._weights = [parameter.detach().clone() for parameter in module.parameters()]

    def held(self, parameter: torch.Tensor) -> torch.Tensor:
        """The reference's value of one of the module's parameters."""
        places = (i for i, own in enumerate(self._module.parameters()) if own is parameter)
        return self._weights[next(places)]

    @torch.no_grad()
    def reset(self) -> None:
        """Take the module's present weights as the reference."""
        for parameter, weight in zip(self._module.parameters(), self._weights, strict=True):
            weight.copy_(parameter)

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, weight in zip(self._module.parameters(), self._weights, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(weight)
            weight.copy_(held)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the module computes with the reference weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()
