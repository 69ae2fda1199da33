"""The description of a medium for MR-SP's first stage: units, tokens, bytes and costs.

A modality (:mod:`megatron_longrl.media.modality`) brings a class of specifications; partition,
encoding, exact backward, embedding store and prompts work on any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

from megatron_longrl.media.deadline import working_on
from megatron_longrl.media.foreign_errors import as_error_of
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modality import MODALITIES

if TYPE_CHECKING:
    from torch import Tensor

UnitTensors: TypeAlias = "tuple[Tensor, ...]"
"""An encoder's input for some units. Dimension 0 of each tensor counts the units, so that units of
several media can be concatenated and split along it."""

Spec = TypeVar("Spec", bound="MediaSpec")

LoadRequest = tuple[Spec, range]
"""A medium, and which of its units are wanted."""


class MediaSpec(ABC):
    """The part of a file that is encoded, and its preprocessing.

    It is made by the rank that builds the prompt and sent to the others, so that it holds no
    tensors. Its units follow each other in time; a unit is the smallest piece that an encoder can
    take alone, and never depends on its neighbours.
    """

    modality: ClassVar[str]
    """The name of its modality."""
    path: str
    """The file."""
    content: str
    """SHA-256 of the file's bytes."""
    preprocess: Hashable
    """Preprocessing of the units. Units of equal preprocessing can go through the encoder in one
    call, which gets it as its last argument."""

    @abstractmethod
    def key(self) -> str:
        """Identifies what the encoder is given: content, choice and preprocessing. No two media, of
        whatever modality, share a key."""

    @property
    @abstractmethod
    def num_units(self) -> int:
        """The number of units; at least 1."""

    @property
    def num_tokens(self) -> int:
        """The number of embeddings of the whole medium."""
        return self.tokens_of(range(self.num_units))

    @abstractmethod
    def tokens_of(self, units: range) -> int:
        """The number of embeddings that consecutive units give."""

    @abstractmethod
    def cost(self) -> float:
        """Return a rank's cost of loading and encoding one unit, in pixels that a vision tower
        encodes.

        Units of all modalities are balanced by it over the ranks of a replica.
        """

    @property
    @abstractmethod
    def unit_bytes(self) -> int:
        """Bytes of one loaded unit; equal for equal preprocessing."""

    @property
    def counted_as(self) -> str:
        """Name under which metrics count the medium, see
        :attr:`~megatron_longrl.media.modality.Modality.counted_as`."""
        return MODALITIES.find(self.modality).counted_as

    @property
    def count_per_unit(self) -> int:
        """Number of counted items (:attr:`counted_as`) in a unit."""
        return 1

    @abstractmethod
    def load(self, units: range) -> UnitTensors:
        """Read consecutive units from the file.

        Raises:
            MediaError: they cannot be read.
        """

    @classmethod
    def load_many(
        cls: type[Spec], requests: Sequence[LoadRequest[Spec]]
    ) -> list[UnitTensors | MediaError]:
        """Read units of several media of this class.

        A modality whose decoder is faster on many files at once overrides it, and calls
        :func:`~megatron_longrl.media.deadline.working_on` when it begins with a file.

        Returns:
            The units of each request, or the error for which they cannot be read.
        """
        results: list[UnitTensors | MediaError] = []
        for spec, units in requests:
            working_on(spec.path)
            try:
                with as_error_of(Path(spec.path)):
                    results.append(spec.load(units))
            except MediaError as error:
                results.append(error)
        return results


def load_units(requests: Sequence[LoadRequest[MediaSpec]]) -> list[UnitTensors | MediaError]:
    """Read units of media of any modality; the media of a class are read together.

    Returns:
        The units of each request, or the error for which they cannot be read.
    """
    results: dict[int, UnitTensors | MediaError] = {}
    for kind in dict.fromkeys(type(spec) for spec, _ in requests):
        numbers = [number for number, (spec, _) in enumerate(requests) if type(spec) is kind]
        loaded = kind.load_many([requests[number] for number in numbers])
        results |= zip(numbers, loaded, strict=True)
    return [results[number] for number in range(len(requests))]
