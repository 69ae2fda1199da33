"""Errors of one rank that all ranks of a group learn before their next collective.

No rank then waits in a collective for a rank that has failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from megatron_longrl.errors import UserError

T = TypeVar("T")


def gather_objects(group: ProcessGroup, value: T) -> list[T]:
    """Gather a Python object from every rank of ``group`` (a gloo group), in rank order."""
    values: list[T] = [value] * group.size()
    if group.size() > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def gather_errors(group: ProcessGroup, local_error: str | None) -> list[str]:
    """Gather the errors of all ranks, so that all raise or skip together.

    Args:
        group: a gloo group.
        local_error: the error of this rank, or None.

    Returns:
        The distinct errors of all ranks, in rank order; the list is empty when no rank has failed.
    """
    errors = [error for error in gather_objects(group, local_error) if error is not None]
    return list(dict.fromkeys(errors))


@contextmanager
def raise_on_all_ranks(group: ProcessGroup) -> Iterator[None]:
    """Run a block without collectives; an error on one rank is raised on all ranks of ``group``.

    Raises:
        UserError: on every rank, with the first error.
    """
    error: str | None = None
    cause: Exception | None = None
    try:
        yield
    except UserError as failure:
        error, cause = str(failure), failure
    except Exception as failure:
        error, cause = f"{type(failure).__name__}: {failure}", failure
    errors = gather_errors(group, error)
    if errors:
        raise UserError(errors[0]) from cause
