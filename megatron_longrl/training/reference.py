"""The frozen reference model of the KL term: the weights that RL started from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from megatron_longrl.models.lora import without_adapters


class ReferenceWeights(ABC):
    """Weights that can stand in for those of the policy's language model."""

    @abstractmethod
    def in_place(self) -> AbstractContextManager[None]:
        """Within the block the language model computes with the reference weights."""


class CopiedWeights(ReferenceWeights):
    """A copy of all parameters.

    Args:
        module: the policy's language model, whose present weights become the reference.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._weights = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, weight in zip(self._module.parameters(), self._weights, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(weight)
            weight.copy_(held)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the two."""
        self._swap()
        try:
            yield
        finally:
            self._swap()


class WeightsBelowAdapters(ReferenceWeights):
    """The model's own weights, of a model of which adapters alone are trained: nothing is copied.

    Args:
        module: the policy's language model.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def in_place(self) -> AbstractContextManager[None]:
        """Switch the adapters off."""
        return without_adapters(self._module)
