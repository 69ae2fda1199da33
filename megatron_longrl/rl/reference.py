"""The frozen reference model of the KL term: the weights that RL started from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from megatron_longrl.models.lora import ADAPTER, without_adapters


class ReferenceWeights(ABC):
    """Weights that can replace those of the policy's language model."""

    @abstractmethod
    def held(self, parameter: Tensor) -> Tensor:
        """The reference's value of one of the model's own weights."""

    @abstractmethod
    def reset(self) -> None:
        """Take the model's present weights as the reference."""

    @abstractmethod
    def in_place(self) -> AbstractContextManager[None]:
        """Give the language model the reference weights within the block."""


class CopiedWeights(ReferenceWeights):
    """A copy of all parameters.

    Args:
        module: the policy's language model, whose present weights become the reference.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = list(module.parameters())
        self._weights = [parameter.detach().clone() for parameter in self._parameters]

    def held(self, parameter: Tensor) -> Tensor:
        places = (i for i, own in enumerate(self._parameters) if own is parameter)
        return self._weights[next(places)]

    @torch.no_grad()
    def reset(self) -> None:
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            weight.copy_(parameter)

    def in_place(self) -> AbstractContextManager[None]:
        return _swapped(self._parameters, self._weights)


class AdapterDisabledReference(ReferenceWeights):
    """The model's own weights, of a model of which adapters alone are trained: nothing is copied.

    After a reset it is these weights with the adapters of that step, of which it keeps a copy.

    Args:
        module: the policy's language model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._adapters = [p for name, p in module.named_parameters() if name.endswith(ADAPTER)]
        self._copies: list[Tensor] | None = None

    def held(self, parameter: Tensor) -> Tensor:
        return parameter.detach()

    def reset(self) -> None:
        self._copies = [parameter.detach().clone() for parameter in self._adapters]

    def in_place(self) -> AbstractContextManager[None]:
        if self._copies is None:
            return without_adapters(self._module)
        return _swapped(self._adapters, self._copies)


@contextmanager
def _swapped(parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[None]:
    """Exchange the values of both within the block."""
    _swap(parameters, weights)
    try:
        yield
    finally:
        _swap(parameters, weights)


@torch.no_grad()
def _swap(parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for parameter, weight in zip(parameters, weights, strict=True):
        own = parameter.detach().clone()
        parameter.copy_(weight)
        weight.copy_(own)
