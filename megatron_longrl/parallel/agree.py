"""No rank leaves a collective alone: what can fail on one becomes a value that all agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from megatron_longrl.errors import UserError

T = TypeVar("T")


def gather_objects(group: ProcessGroup, value: T) -> list[T]:
    """All ranks' values of ``group`` (a gloo group), in rank order."""
    values: list[T] = [value] * group.size()
    if group.size() > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def agree(group: ProcessGroup, local_error: str | None) -> list[str]:
    """All ranks learn all errors, so that all raise or skip together.

    Args:
        group: a gloo group.
        local_error: what went wrong on this rank, or None.

    Returns:
        The distinct errors of all ranks, in rank order; empty when all is well.
    """
    errors = [error for error in gather_objects(group, local_error) if error is not None]
    return list(dict.fromkeys(errors))


@contextmanager
def together(group: ProcessGroup) -> Iterator[None]:
    """Run a block that holds no collective; an error on one rank is raised on all of ``group``.

    Raises:
        UserError: naming the first failure, on every rank.
    """
    error: str | None = None
    cause: Exception | None = None
    try:
        yield
    except UserError as failure:
        error, cause = str(failure), failure
    except Exception as failure:
        error, cause = f"{type(failure).__name__}: {failure}", failure
    errors = agree(group, error)
    if errors:
        raise UserError(errors[0]) from cause
