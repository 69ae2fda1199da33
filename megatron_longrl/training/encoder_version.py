"""The version of the encoder's weights that an embedding comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from megatron_longrl.conversion.mapping import export_named_tensors, mapping_table
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import TrainedModel

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


class EncoderVersion:
    """The versions of a model's encoders, by which their embeddings are kept.

    The version of a trained encoder is the number of its updates, which means something within this
    run only. Where embeddings outlive the run, it is the hash of the weights, see
    :func:`fingerprint`: computed when it is first asked for, and again when a weight was written to
    since.

    Args:
        outlives_run: the names of the encoders whose embeddings outlive the run.
    """

    def __init__(
        self,
        model: TrainedModel,
        config: ModelConfig,
        groups: ParallelGroups,
        *,
        outlives_run: Collection[str] = (),
    ) -> None:
        self._model = model
        self._config = config
        self._groups = groups
        self._outlives_run = outlives_run
        self._hashed: dict[str, tuple[int, ...]] = {}
        self._fingerprints: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """The version of an encoder; collective over the replica."""
        if name not in self._outlives_run:
            is_trained = name in self._model.trained_encoders
            return f"{name} update {self._model.encoder_version if is_trained else 0}"
        # torch counts the writes to a tensor.
        parameters = self._model.encoders[name].parameters()
        writes = tuple(parameter._version for parameter in parameters)
        if any(gather_objects(self._groups.replica_gloo_group, writes != self._hashed.get(name))):
            self._fingerprints[name] = fingerprint(name, self._model, self._config, self._groups)
            self._hashed[name] = writes
        return self._fingerprints[name]


def fingerprint(
    encoder: str, model: TrainedModel, config: ModelConfig, groups: ParallelGroups
) -> str:
    """Return the hash of an encoder's weights and of everything else that its embeddings depend on.

    It is taken of the full tensors that an export would write, so that it is the same in every
    layout and however the weights came here. Kinds of devices decode and multiply differently.
    Collective over the replica.
    """
    digest = hashlib.sha256()
    # The same weights make other embeddings under another order of tokens or scale of S2.
    settings = [(name, config.value(name)) for name in config.family.architecture_fields()]
    digest.update(
        repr((platform.name, config.training.params_dtype, config.model.family, settings)).encode()
    )
    mappings = mapping_table(config).entries
    parts = sorted(
        {mapping.part for mapping in mappings if mapping.megatron_param.startswith(f"{encoder}.")}
    )
    is_source = groups.replica_gloo_group.rank() == 0
    for name, tensor in export_named_tensors(model.modules, config, groups, parts):
        if is_source:
            data = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {list(data.shape)}".encode())
            digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return gather_objects(groups.replica_gloo_group, digest.hexdigest() if is_source else "")[0]
