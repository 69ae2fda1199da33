"""The weights of a distributed checkpoint as a model computes with them: LoRA adapters merged.

Nothing here is collective. Memory is a few parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from megatron_longrl.checkpoint.dist_reader import StoredParameters
from megatron_longrl.checkpoint.folder import STATE_FILE
from megatron_longrl.config.lora import lora_scale
from megatron_longrl.conversion.mapping import expected_sizes, local_parameters, mapping_table
from megatron_longrl.models.lora import merged_weight
from megatron_longrl.models.param_mapping import TensorMapping, adapter_mappings
from megatron_longrl.models.sizes import check_sizes

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


class MergedWeights:
    """The weights of one checkpoint under Hugging Face names.

    Args:
        stored: the parameters in the checkpoint.
        config: the configuration of the model in it, with ``vocab_size``.
        scale: the scale of the adapters (see :func:`stored_scale`); None leaves them out.
    """

    def __init__(
        self, stored: StoredParameters, config: ModelConfig, scale: float | None = None
    ) -> None:
        self._stored = stored
        self._scale = scale
        self._mappings = {
            name: mapping
            for mapping in mapping_table(config).expand()
            if mapping.exported
            for name in mapping.hf_params
        }
        self._last: tuple[TensorMapping | None, dict[str, Tensor]] = (None, {})

    def read(self, name: str) -> Tensor:
        """One tensor, full. Those of one parameter are best asked for one after the other.

        Raises:
            UserError: the checkpoint lacks its parameter.
        """
        mapping = self._mappings[name]
        if self._last[0] is not mapping:
            self._last = (None, {})  # makes room before the next one is read
            weight = self._stored.read(mapping.megatron_param)
            adapter = read_adapter(self._stored, mapping) if self._scale is not None else None
            if adapter is not None:
                assert self._scale is not None
                weight = merged_weight(weight, *adapter, self._scale)
            self._last = (mapping, dict(zip(mapping.hf_params, mapping.split(weight), strict=True)))
        return self._last[1][name]


def check_stored_sizes(stored: StoredParameters, folder: Path, config: ModelConfig) -> None:
    """Check that the sizes in a checkpoint's configuration are those of the weights beside it.

    Args:
        stored: the parameters of one iteration.
        folder: the folder of that iteration, for the message.
        config: the configuration of the model in it, with ``vocab_size``.

    Raises:
        UserError: naming the state file, the size and the tensor that it does not fit.
    """
    expected = expected_sizes(config)
    if not expected:
        return
    mappings = {
        name: mapping
        for mapping in mapping_table(config).expand()
        if mapping.exported
        for name in mapping.hf_params
    }

    def shape_of(name: str) -> tuple[int, ...] | None:
        mapping = mappings.get(name)
        shape = stored.shape(mapping.megatron_param) if mapping is not None else None
        if mapping is None or shape is None:
            return None
        try:
            parts = mapping.split(torch.empty(shape, device="meta"))
        except (RuntimeError, ValueError):  # the sizes by which it is split are wrong
            return shape
        return tuple(parts[mapping.hf_params.index(name)].shape)

    check_sizes(shape_of, expected, lambda name: folder / STATE_FILE)


def stored_scale(saved: Mapping[str, Any]) -> float | None:
    """Return the scale of a checkpoint's adapters; None where it has none.

    Args:
        saved: the configuration that it holds. Older ones know no adapters.
    """
    if not saved.get("lora_rank"):
        return None
    return lora_scale(saved["lora_rank"], saved["lora_alpha"], saved["lora_use_rslora"])


def read_adapter(stored: StoredParameters, mapping: TensorMapping) -> tuple[Tensor, Tensor] | None:
    """Full A [r, in] and B [out, r] beside a weight; None where it has no adapter.

    Args:
        mapping: the mapping of the weight.
    """
    a, b = adapter_mappings(mapping)
    if not stored.has(a.megatron_param):
        return None
    return stored.read(a.megatron_param), stored.read(b.megatron_param)


@torch.no_grad()
def merge_stored_adapters(
    stored: StoredParameters,
    saved: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    groups: ParallelGroups,
    config: ModelConfig,
) -> None:
    """Add the adapters of a checkpoint to the weights that were loaded from it, each rank to its
    own shards.

    Args:
        stored: the parameters of the checkpoint.
        saved: the configuration in the checkpoint.
        config: the configuration of the model.
    """
    scale = stored_scale(saved)
    if scale is None:
        return
    local = local_parameters(modules)
    for mapping in mapping_table(config).expand():
        parameter = local.get(mapping.megatron_param)
        adapter = read_adapter(stored, mapping) if parameter is not None else None
        if parameter is None or adapter is None:
            continue
        size, rank = (1, 0) if mapping.replicated else (groups.tp.size(), groups.tp.rank())
        a, b = (
            part.shard(full, rank, size).to(parameter.device)
            for part, full in zip(adapter_mappings(mapping), adapter, strict=True)
        )
        parameter.copy_(merged_weight(parameter, a, b, scale))
