"""A family's description of its encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.data import DataSection
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
    from megatron_longrl.parallel.encoder_groups import EncoderGroups


def _is_whole(parallel: ParallelSection) -> bool:
    return False


@dataclass(frozen=True)
class FamilyEncoder:
    """One encoder of a family: from units of some modalities to embeddings of the language model.

    Its module is called with the tensors of some units
    (:data:`~megatron_longrl.media.spec.UnitTensors`) and their preprocessing, and gives
    [tokens, w] or [units, tokens of a unit, w]. Units must not depend on each other.
    """

    modalities: tuple[str, ...]
    """The modalities that it encodes."""
    build: Callable[[ModelConfig, EncoderGroups], torch.nn.Module]
    """Makes the module, a megatron-core ``MegatronModule``."""
    width: Callable[[ModelConfig], int]
    """w, channels of an embedding: the hidden size, or more where DeepStack adds to layers."""
    chunk_units: Callable[[DataSection, Any], int]
    """(data, preprocessing) -> units that go through it at a time, which bounds memory; at least
    1."""
    is_split: Callable[[ParallelSection], bool] = _is_whole
    """Whether its layers are split over tensor-parallel ranks."""


def vision_encoder(build: Callable[[ModelConfig, EncoderGroups], torch.nn.Module]) -> FamilyEncoder:
    """An encoder of videos and images."""
    return FamilyEncoder(
        modalities=("video", "image"),
        build=build,
        width=lambda config: config.embedding_width,
        chunk_units=_frames_at_a_time,
        is_split=lambda parallel: parallel.vision_tensor_parallel,
    )


def _frames_at_a_time(data: DataSection, preprocess: PreprocessSpec) -> int:
    return max(data.encoder_chunk_frames // preprocess.frames_per_unit, 1)
