"""The trainer's weights on their way to an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from megatron_longrl.errors import UserError

EMBEDDING = "model.embed_tokens.weight"
OUTPUT_LAYER = "lm_head.weight"

NamedTensors = Iterable[tuple[str, Tensor]]


class WeightIterator:
    """The current weights at each iteration over it: an engine that has lost them asks again.

    Args:
        stream: gives every weight once, by its Hugging Face name; may communicate.
    """

    def __init__(self, stream: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._stream()


class WeightReceiver:
    """An iterator that passes the weights to an engine, keeps the token embeddings, and notes
    missing ones.

    Args:
        shapes: the shapes of all weights that the engine takes, by Hugging Face name.
        dtype: the engine's type of weights.
        copies_head: the engine takes the output layer, though it is tied to the embeddings.
    """

    def __init__(
        self, shapes: Mapping[str, torch.Size], dtype: torch.dtype, *, copies_head: bool = False
    ) -> None:
        self._dtype = dtype
        self._copies_head = copies_head
        self.shapes = shapes
        self.token_embeddings: Tensor | None = None
        """[vocabulary, h], on CPU."""
        self._seen: set[str] = set()

    def passing(self, named: NamedTensors) -> Iterator[tuple[str, Tensor]]:
        """The weights as the engine takes them."""
        self._seen = set()
        for name, tensor in named:
            self._seen.add(name)
            if name == EMBEDDING:
                # A copy: the tensor may be the parameter that the optimizer updates in place.
                self.token_embeddings = tensor.detach().to("cpu", self._dtype, copy=True)
                if self._copies_head:
                    self._seen.add(OUTPUT_LAYER)
                    yield OUTPUT_LAYER, tensor
            yield name, tensor

    def check_complete(self) -> None:
        """Raise UserError where a weight has not passed."""
        missing = sorted(self.shapes.keys() - self._seen)
        if missing:
            raise UserError(
                f"{len(missing)} weights did not reach the rollout engine, {missing[0]} for"
                " one: the model's name mapping does not cover its Hugging Face configuration"
            )
