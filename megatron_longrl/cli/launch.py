"""The frame of every entry point: errors in one line, destroyed groups, exit status."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_longrl.cli.load import load_config
from megatron_longrl.config import Config, Entry
from megatron_longrl.errors import USER_ERROR_STATUS, UserError, error_line
from megatron_longrl.foreign_warnings import ignore_harmless_warnings
from megatron_longrl.models.policy import Program, find_policy
from megatron_longrl.processes import exit_signal
from megatron_longrl.processes.output_reader import until_reader_ends
from megatron_longrl.processes.parent_death import end_with
from megatron_longrl.processes.rank_watch import rank_watch
from megatron_longrl.processes.temporary import temporary_folder

logger = logging.getLogger(__name__)

ECHO_SECONDS = 5.0
"""Seconds that a rank which has lost another one waits for its message."""

SHOWN = 8
"""The most changed fields that are named when a run continues."""


def launch(entry: Entry, work: Program, argv: Sequence[str] | None) -> int:
    """Read the configuration and do the work.

    Returns:
        0 when all was done; 2 after a user's error, which is reported in one line; 128 + signal
        after one of :data:`megatron_longrl.processes.exit_signal.SIGNALS`. Any other exception goes
        through, so that torchrun ends the other ranks.
    """
    ignore_harmless_warnings()
    # Tensor-parallel communication overlaps with computation only on one hardware queue; core warns
    # where it is not set, on a CPU, too.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())
    rank_watch.start(_end)

    def launched() -> int:
        with temporary_folder():
            return until_reader_ends(lambda: _launch(entry, work, argv))

    return exit_signal.until_stopped(launched, _stopped, leave_groups)


def _stopped(stop: exit_signal.Stopped) -> int:
    """Return the error of a run that a signal has ended."""
    if rank_watch.lost(stop):  # It asks for the end of what another rank's end has left.
        return USER_ERROR_STATUS
    _tell(str(stop))
    return stop.status


def _launch(entry: Entry, work: Program, argv: Sequence[str] | None) -> int:
    try:
        config = load_config(sys.argv[1:] if argv is None else argv, entry, files=True)
        from megatron_longrl.observability.logging import configure_logging

        configure_logging(config.logging.log_level, int(os.environ.get("RANK", "0")))
        with _owned(config, entry):
            from megatron_longrl.platforms import platform

            platform.import_core()
            policy = find_policy(config.model.family)
            (work if policy is None else policy.program(entry))(config)
    except UserError as error:
        _tell(rank_watch.explained(error) or str(error))
        leave_groups()
        return USER_ERROR_STATUS
    except Exception as error:
        if _is_echo(error):
            return USER_ERROR_STATUS
        line = rank_watch.explained(error)
        if line is None and rank_watch.lost(error):
            line = rank_watch.lost_line()
        if line is not None:
            _end(line)
        raise  # Other ranks may be inside a collective: nothing may wait for them here.
    leave_groups()
    return 0


@contextmanager
def _owned(config: Config, entry: Entry) -> Iterator[None]:
    """Hold the ``--save`` folder on the first rank while a run trains."""
    if entry not in ("sft", "rl"):
        yield
        return
    from megatron_longrl.cli.changes import changes_since

    _tell_changes(config.checkpoint.load, changes_since(config))
    if int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    from megatron_longrl.training.run_folder import run_folder

    with run_folder(config.checkpoint):
        yield


def _tell_changes(load: str | None, changes: Sequence[str]) -> None:
    """Log the differences between a run that continues and its beginning."""
    if changes:
        more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        logger.info(
            "%s continues with changes: %s%s",
            load,
            "; ".join(changes[:SHOWN]),
            more,
        )


def _tell(message: str) -> None:
    """Print the error once for all ranks of this node, and let torchrun's last lines repeat it.

    Whichever rank comes first prints: torchrun ends all others as soon as one is gone, and it may
    be that only one has met the problem.
    """
    line = error_line(message)
    report = _torchrun_report()
    if report is not None:
        details = {"message": line.rstrip(), "extraInfo": {"timestamp": str(int(time.time()))}}
        report.write_text(json.dumps({"message": details}), encoding="utf-8")
    if _is_first():
        sys.stdout.flush()
        sys.stderr.write(line)
        sys.stderr.flush()


def _torchrun_report() -> Path | None:
    """The file in which torchrun looks for the reason why this rank failed."""
    path = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull))
    return path if path.parent.is_dir() and path.name == "error.json" else None


def _told_mark() -> Path | None:
    """A file that the ranks of this node share while this attempt of the job lasts."""
    report = _torchrun_report()
    return report.parent.parent / "longrl_error_told" if report is not None else None


def _someone_told() -> bool:
    mark = _told_mark()
    return mark is not None and mark.exists()


def _is_first() -> bool:
    mark = _told_mark()
    if mark is None:
        return True
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _is_echo(error: BaseException) -> bool:
    """Whether an error is only the echo of another rank's end, which that rank, or the launcher,
    reports."""
    if rank_watch.lost(error):
        deadline = time.monotonic() + ECHO_SECONDS
        while time.monotonic() < deadline:
            if _someone_told() or exit_signal.received():
                return True
            time.sleep(0.05)
    return _someone_told()


def _end(line: str) -> None:
    """Tell, and end this process at once: other ranks wait in vain, and so would it for them."""
    _tell(line)
    os._exit(USER_ERROR_STATUS)


def leave_groups() -> None:
    """Leave the groups that this process has joined, if it has loaded torch at all."""
    rank_watch.disconnect()
    if "torch" in sys.modules:
        from megatron_longrl.parallel.groups import destroy_parallel

        destroy_parallel()
