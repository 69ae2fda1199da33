"""The check that the weights of a checkpoint have the sizes of its settings. A few tensors have all
sizes. They are compared in the headers of files, before a model is built by settings that may be
damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_longrl.errors import UserError


@dataclass(frozen=True)
class Sized:
    """A tensor whose shape gives sizes."""

    name: str
    """Name of the tensor in the family's mapping table."""
    sizes: tuple[tuple[str, int], ...]
    """The setting that each axis follows, and its size by the settings."""
    counts: tuple[str, int] | None = None
    """The setting by which there is such a tensor at all, as that of the last layer, and its
    value."""


def check_sizes(
    shape_of: Callable[[str], tuple[int, ...] | None],
    expected: Sequence[Sized],
    file_of: Callable[[str], Path],
) -> None:
    """Compare shapes with settings.

    Args:
        shape_of: gives the shape of a tensor; None where there is none, which is no matter here.
        file_of: the file with the settings of a tensor, for the message.

    Raises:
        UserError: naming the file, the setting and the tensor that it does not fit.
    """
    for tensor in expected:
        found = shape_of(tensor.name)
        stored = tensor.name.partition("/")[2]
        if found is None:
            if tensor.counts is not None:
                setting, count = tensor.counts
                raise UserError(
                    f"{file_of(tensor.name)}: {setting} {count} does not fit the weights, which "
                    f"have no tensor {stored}"
                )
            continue
        for axis, (setting, size) in enumerate(tensor.sizes):
            if len(found) != len(tensor.sizes) or found[axis] != size:
                raise UserError(
                    f"{file_of(tensor.name)}: {setting} ({size}) does not fit the tensor {stored} "
                    f"{list(found)}"
                )
