"""megatron-core's reading and writing of files, with ordinary exceptions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_longrl.checkpoint.shard_writer import core_errors


@contextmanager
def core_files() -> Iterator[None]:
    """Raise ordinary exceptions from core's reading and writing in the block, and hide warnings
    about core itself."""
    with warnings.catch_warnings():
        # core 0.16.1 uses torch's ShardedTensor, of which every use warns.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*assuming the intent is to (load|save) in")
        with core_errors():
            yield
