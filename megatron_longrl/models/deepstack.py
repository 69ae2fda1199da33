"""DeepStack (https://arxiv.org/abs/2406.04334): features of the vision tower's inner layers, added
to the hidden states behind the first layers of the language model.

They travel to the layers with core's packed_seq_params, the one argument that every layer is given,
also when it is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True)
class DeepStack:
    """The features that DeepStack adds to the sequences of a micro-batch."""

    slots: Tensor
    """bool [b, s] of this rank's shard: the places of media embeddings."""
    levels: Sequence[Tensor]
    """[slots, h] for each of the first layers, in the order of ``slots``. Each must have come from
    the embeddings on a separate way: a layer that is computed again goes back along it then."""


@dataclass
class DeepStackParams(PackedSeqParams):
    """core's argument of all layers, with ours beside it."""

    deepstack: DeepStack | None = None

    @classmethod
    def beside(cls, params: PackedSeqParams, deepstack: DeepStack | None) -> PackedSeqParams:
        """``params``, with ``deepstack`` where there is one."""
        if deepstack is None:
            return params
        values = {f.name: getattr(params, f.name) for f in fields(params)}
        return cls(**values, deepstack=deepstack)


def install_deepstack(model: GPTModel, levels: int) -> None:
    """Make the first layers of the first pipeline stage add the features of a micro-batch.

    Raises:
        ValueError: the stage has fewer layers; --pipeline-model-parallel-size is checked before.
    """
    layers = model.decoder.layers
    if levels > len(layers):
        raise ValueError(f"{levels} levels of DeepStack, {len(layers)} layers on the first stage")
    for level in range(levels):
        layers[level].register_forward_hook(partial(_add, model, level), with_kwargs=True)


def _add(
    model: GPTModel, level: int, layer: Any, args: Any, kwargs: dict[str, Any], output: Any
) -> Any:
    """A layer's output is (hidden [s, b, h], context)."""
    params = kwargs.get("packed_seq_params")
    deepstack = params.deepstack if isinstance(params, DeepStackParams) else None
    if deepstack is None:
        return output
    hidden, *others = output
    slots = deepstack.slots
    values = deepstack.levels[level].to(hidden.dtype)
    added = hidden.new_zeros((*slots.shape, hidden.shape[-1])).index_put((slots,), values)
    added = added.transpose(0, 1).contiguous()  # [s, b, h]
    if model.config.sequence_parallel:
        added = tensor_parallel.scatter_to_sequence_parallel_region(
            added, group=model.pg_collection.tp
        )
    return (hidden + added, *others)
