"""``longrl train-sft``, ``train-rl``, ``evaluate`` and ``generate``: starts the ranks, unless
torchrun has."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from megatron_longrl.cli.defaults import replica_size
from megatron_longrl.cli.given import PROGRAMS, Given, read_given
from megatron_longrl.cli.ranks import run_ranks, split_rank_options
from megatron_longrl.cli.required import check_given
from megatron_longrl.config.schema import Entry
from megatron_longrl.errors import USER_ERROR_STATUS, UserError, error_line
from megatron_longrl.foreign_warnings import ignore_harmless_warnings
from megatron_longrl.processes.temporary import temporary_folder

ENTRIES: dict[str, Entry] = {
    "train-sft": "sft",
    "train-rl": "rl",
    "evaluate": "evaluate",
    "generate": "generate",
}
"""Subcommand -> entry point."""


def main(arguments: Sequence[str]) -> int:
    """Run one of :data:`ENTRIES`.

    Errors that can be found without torch are reported before a rank is started. One rank runs in
    this process.

    Args:
        arguments: the subcommand and its flags.

    Returns:
        The exit status.
    """
    ignore_harmless_warnings()
    entry = ENTRIES[arguments[0]]
    module = f"megatron_longrl.{PROGRAMS[entry]}"
    try:
        options, flags = split_rank_options(arguments[1:])
        if "RANK" in os.environ:  # A launcher has started this process as one rank of several.
            return _run_here(module, flags)
        given = read_given(flags, entry)
        check_given(given)
        ranks = options.nproc_per_node or default_ranks(given)
    except UserError as error:
        sys.stderr.write(error_line(error))
        return USER_ERROR_STATUS
    if given.print_only:
        return _run_here(module, flags)
    with temporary_folder():
        if ranks == 1 and options.nnodes == 1:
            return _run_here(module, flags)
        return run_ranks(module, flags, replace(options, nproc_per_node=ranks))


def _run_here(module: str, flags: Sequence[str]) -> int:
    status: int = importlib.import_module(module).main(flags)
    return status


def default_ranks(given: Given) -> int:
    """One rank for each GPU of this machine; without GPUs as many as one model replica needs."""
    return gpus() or replica_size(given.values)


def gpus() -> int:
    """GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0
