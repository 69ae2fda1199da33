"""Writing a distributed checkpoint's weights tensor by tensor.

It goes by the names and shapes of a model whose memory is never touched. Memory is a few
parameters. Reading is in :mod:`megatron_longrl.checkpoint.dist_reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_longrl.checkpoint.dist_reader import checkpoint_key
from megatron_longrl.checkpoint.shard_writer import ShardWriter
from megatron_longrl.conversion.mapping import (
    check_shape,
    local_parameters,
    mapping_table,
    merge_named,
)

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig


class StreamedSave(ShardWriter):
    """Saves weights that are read while they are written, in place of those of a model.

    Args:
        group: the world, of one rank.
        config: the configuration of the model, with ``vocab_size``.
        modules: the modules of the model on one rank, for the shapes.
        read: gives the tensor of a Hugging Face name.
    """

    def __init__(
        self,
        group: ProcessGroup,
        config: ModelConfig,
        modules: Mapping[str, nn.Module],
        read: Callable[[str], Tensor],
    ) -> None:
        super().__init__(group)
        self._read = read
        self._mappings = {
            checkpoint_key(mapping.megatron_param): mapping
            for mapping in mapping_table(config).expand()
        }
        self._parameters = local_parameters(modules)
        self._last: tuple[tuple[str, int | None] | None, Tensor | None] = (None, None)

    def planner(self) -> MCoreSavePlanner:
        """Return a planner in place of the one that finds the tensors in the model."""
        stacked = {key for key, layer in self._mappings if layer is not None}
        return _StreamingPlanner(self._tensor, stacked)

    def _tensor(self, key: str, layer: int | None) -> Tensor:
        """A whole parameter. The parts of one are asked for one after the other."""
        if self._last[0] != (key, layer):
            self._last = (None, None)  # makes room before the next one is read
            mapping = self._mappings[key, layer]
            tensors = [self._read(name) for name in mapping.hf_params]
            value = merge_named(mapping, tensors)
            parameter = self._parameters[mapping.megatron_param]
            check_shape(mapping, tensors, value, parameter)
            self._last = ((key, layer), value.to(parameter.dtype))
        assert self._last[1] is not None
        return self._last[1]


class _StreamingPlanner(MCoreSavePlanner):
    """Asks for tensors when they are written.

    Args:
        stacked: keys under which the layers of a parameter are stacked.
    """

    def __init__(self, read: Callable[[str, int | None], Tensor], stacked: set[str]) -> None:
        super().__init__(flatten_state_dict=False)
        self._read = read
        self._stacked = stacked

    def lookup_object(self, index: MetadataIndex) -> Any:
        """A shard: a box of the parameter, or of the stack of a parameter's layers."""
        held = super().lookup_object(index)
        if not isinstance(held, Tensor):
            return held
        offset = list(index.offset or [0] * held.dim())
        is_layer = index.fqn in self._stacked
        tensor = self._read(index.fqn, offset[0] if is_layer else None)
        if is_layer:
            tensor, offset[0] = tensor[None], 0
        for axis, (start, size) in enumerate(zip(offset, held.shape, strict=True)):
            tensor = tensor.narrow(axis, start, size)
        return tensor.contiguous()
