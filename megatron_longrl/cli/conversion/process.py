"""Set-up and errors of the conversion programs, in a separate process or not."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

from megatron_longrl.cli.launch import leave_groups
from megatron_longrl.errors import USER_ERROR_STATUS, UserError, error_line
from megatron_longrl.foreign_warnings import ignore_core


def run(work: Callable[[], int]) -> int:
    """Do the work on this process alone; returns the exit status.

    A :class:`UserError` is one line and status 2. An interrupt is one line and status 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    ignore_core()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _tell("run this program without torchrun, on one process")
    had_groups = _has_groups()
    try:
        return work()
    except UserError as error:
        return _tell(str(error))
    except KeyboardInterrupt:
        _tell("interrupted; what was half-written is removed")
        return 128 + signal.SIGINT
    finally:
        if not had_groups:
            leave_groups()


def _has_groups() -> bool:
    """Whether somebody else in this process uses torch.distributed."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


def _tell(line: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(error_line(line))
    return USER_ERROR_STATUS
