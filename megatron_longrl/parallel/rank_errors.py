"""Errors of one rank that all ranks of a group learn before their next collective.

No rank then waits in a collective for a rank that has failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from megatron_longrl.errors import ConfigError, DataError, UserError

T = TypeVar("T")


def gather_objects(group: ProcessGroup, value: T) -> list[T]:
    """Gather a Python object from every rank of ``group`` (a gloo group), in rank order."""
    values: list[T] = [value] * group.size()
    if group.size() > 1:
        dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def raise_on_all_ranks(group: ProcessGroup) -> Iterator[None]:
    """Run a block without collectives; an error on one rank is raised on all ranks of ``group``.

    Raises:
        UserError: on every rank, with the first error, and of its kind.
    """
    error: tuple[type[UserError], str] | None = None
    cause: Exception | None = None
    try:
        yield
    except UserError as failure:
        error, cause = (_kind(failure), str(failure)), failure
    except Exception as failure:
        error, cause = (UserError, f"{type(failure).__name__}: {failure}"), failure
    for found in gather_objects(group, error):
        if found is not None:
            kind, line = found
            raise kind(line) from cause


def _kind(error: UserError) -> type[UserError]:
    """The kind of an error, which is raised again with its line only."""
    return next(kind for kind in (ConfigError, DataError, UserError) if isinstance(error, kind))
