"""A modality: series of numbers in .npy files, such as those of a sensor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.layout import PlaceholderSpan, PromptPart
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modality import MODALITIES, Modality
from megatron_longrl.media.spec import MediaSpec, UnitTensors

SAMPLES_PER_TOKEN, TOKENS_PER_UNIT = 4, 4
SAMPLES_PER_UNIT = SAMPLES_PER_TOKEN * TOKENS_PER_UNIT


def read(path: str | Path) -> np.ndarray:
    """A series of numbers, float [n], which is not in memory yet."""
    series = np.load(path, mmap_mode="r", allow_pickle=False)
    if series.ndim != 1 or not len(series):
        raise MediaError(path, f"an array of shape {list(series.shape)} is no series of numbers")
    return series


@dataclass(frozen=True)
class SignalSpec(MediaSpec):
    """A whole series; its last unit may be shorter than the others, and gives fewer tokens."""

    modality: ClassVar[str] = "signal"

    path: str
    content: str
    samples: int
    preprocess: str = "as it is"

    def key(self) -> str:
        return hashlib.sha256(f"signal/{self.content}".encode()).hexdigest()

    @property
    def num_units(self) -> int:
        return -(-self.samples // SAMPLES_PER_UNIT)

    def tokens_of(self, units: range) -> int:
        first, end = units.start * SAMPLES_PER_UNIT, units.stop * SAMPLES_PER_UNIT
        return -(-(min(end, self.samples) - first) // SAMPLES_PER_TOKEN)

    def cost(self) -> float:
        return 10.0 * SAMPLES_PER_UNIT

    @property
    def unit_bytes(self) -> int:
        return 4 * SAMPLES_PER_UNIT + 8

    def load(self, units: range) -> UnitTensors:
        """Values, float32 [units, samples], with zeros at the end, and tokens, long [units]."""
        span = slice(units.start * SAMPLES_PER_UNIT, units.stop * SAMPLES_PER_UNIT)
        values = torch.zeros(len(units) * SAMPLES_PER_UNIT)
        found = torch.from_numpy(np.array(read(self.path)[span], dtype=np.float32))
        values[: len(found)] = found
        tokens = [self.tokens_of(range(unit, unit + 1)) for unit in units]
        return values.view(len(units), -1), torch.tensor(tokens)


@dataclass(frozen=True)
class SignalPlacement:
    """A series in a prompt: its placeholders, and the end of the line."""

    path: Path
    media_id: int
    num_frames: int = 0

    @property
    def parts(self) -> list[PromptPart]:
        return [PlaceholderSpan(self.media_id, (self._spec("").num_tokens, 1, 1)), "\n"]

    def specs(self) -> tuple[MediaSpec, ...]:
        return (self._spec(content_hash(self.path)),)

    def _spec(self, content: str) -> SignalSpec:
        return SignalSpec(str(self.path), content, len(read(self.path)))


MODALITIES.register("signal", Modality("signal", "signals", ("signal",)))
