"""Starts the ranks of a run, as torchrun does, and says in one line why one of them failed."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from megatron_longrl.config.flags import Parser
from megatron_longrl.errors import UserError
from megatron_longrl.processes.descendants import children
from megatron_longrl.processes.exit_signal import INTERRUPTS_THAT_END

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals at which torchrun's agent ends the ranks."""


@dataclass(frozen=True)
class RankOptions:
    """The number of ranks and their nodes, spelled as in torchrun."""

    nproc_per_node: int | None = None
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "localhost"
    master_port: int = 0
    """0 takes a free port, of one node."""


def split_rank_options(arguments: Sequence[str]) -> tuple[RankOptions, list[str]]:
    """torchrun's options among the flags of a run, and the other flags.

    Raises:
        UserError: a value is no number.
    """
    parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in ("nproc-per-node", "nnodes", "node-rank", "master-port"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--master-addr")
    found, rest = parser.parse_known_args(list(arguments))
    options = RankOptions(**vars(found))
    if options.nproc_per_node == 0 or min(options.nproc_per_node or 1, options.nnodes) < 1:
        raise UserError("--nproc-per-node and --nnodes must be at least 1")
    if options.nnodes > 1 and not options.master_port:
        raise UserError(
            f"--nnodes {options.nnodes} needs --master-addr and --master-port of the first node"
        )
    return options, rest


def run_ranks(module: str, flags: Sequence[str], options: RankOptions) -> int:
    """Run a module on all ranks of this node.

    Returns:
        The exit status of the rank that failed first; 0 where none did.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It tells of every rank that it ends; the rank that failed has told why.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    several = options.nnodes > 1
    config = LaunchConfig(
        min_nodes=options.nnodes,
        max_nodes=options.nnodes,
        nproc_per_node=options.nproc_per_node or 1,
        run_id=uuid.uuid4().hex if not several else "longrl",
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=f"{options.master_addr}:{options.master_port}",
        rdzv_configs={"rank": options.node_rank, "timeout": 900},
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle="",  # see _signals_of_a_launcher
    )
    try:
        with _signals_of_a_launcher():
            elastic_launch(config, sys.executable)("-m", module, *flags)
    except ChildFailedError as error:
        # torchrun's own SIGTERM ends those that are left: they are not the cause.
        rank, failure = min(
            error.failures.items(),
            key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp),
        )
        if failure.exitcode >= 0:
            return failure.exitcode
        full = -failure.exitcode == signal.SIGBUS
        why = ", most often because shared memory is full: see df -h /dev/shm" if full else ""
        sys.stderr.write(f"error: rank {rank} was ended by {failure.signal_name()}{why}\n")
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


@contextlib.contextmanager
def _signals_of_a_launcher() -> Iterator[None]:
    """Pass SIGUSR1 on to the ranks, which torchrun's agent dies of, and end them at the first other
    signal, which the agent does when SignalException is raised.

    While the agent waits for the ranks, which save a checkpoint, further signals are ignored: its
    own handlers would raise a second time, out of the wait, and the ranks would end with it.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    received: list[int] = []
    passed_on: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        for child in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1 or received.count(signal.SIGINT) >= INTERRUPTS_THAT_END:
            name = signal.Signals(number)
            raise SignalException(f"Process {os.getpid()} got signal: {name}", sigval=name)

    handlers = dict.fromkeys(_ENDING, end) | {signal.SIGUSR1: pass_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            # Python's own end resets a handler, and a signal then would be the exit status.
            signal.signal(number, signal.SIG_IGN if received or passed_on else handler)
