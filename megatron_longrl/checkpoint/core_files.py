"""megatron-core's reading and writing of files, with ordinary exceptions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException

from megatron_longrl.errors import UserError


@contextmanager
def core_files() -> Iterator[None]:
    """Around core's reading and writing: ordinary exceptions, and no warnings about core itself."""
    with warnings.catch_warnings():
        # core 0.16.1 uses torch's ShardedTensor, of which every use warns.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*assuming the intent is to (load|save) in")
        try:
            yield
        except CheckpointException as error:  # a BaseException, the same on all ranks
            # Of a failed write only rank 0 knows more than that there was one.
            for failure, _ in error.failures.values():
                if isinstance(failure, UserError):
                    raise failure from None
            failures = [f"{type(e).__name__}: {e}" for e, _ in error.failures.values()]
            reason = failures[0] if failures else "another rank failed"
            raise RuntimeError(reason.splitlines()[0]) from error
