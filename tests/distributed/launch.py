"""``python -m tests.distributed.launch RANKS PYTEST-ARGUMENTS``: pytest on every rank, by torchrun.

torchrun tells at length, in two tracebacks of its own, that a rank has ended with another status
than 0. The ranks have said why before, and what they say should be the last that one reads.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(ranks: str, *arguments: str) -> int:
    """Launch; the exit status."""
    logging.disable(logging.ERROR)
    try:
        run.main(["--standalone", "--nproc-per-node", ranks, "-m", "pytest", *arguments])
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:  # Not a test's doing: a rank's guard outlives it.
                sys.stderr.write(f"the guard of rank {rank} was ended: {failure.signal_name()}\n")
        return 1
    except SignalException as error:
        sys.stderr.write(f"the launch was ended by {error.sigval.name}\n")
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
