"""What a run leaves behind: processes, shared memory, temporary folders, half-written files."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "LONGRL_TEST_RUN"
"""Variable of the environment that all processes of a run inherit."""

SHARED_MEMORY = Path("/dev/shm")


def processes(mark: str) -> list[psutil.Process]:
    """Of a run, however they have come to be."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def ranks(mark: str, module: str) -> dict[int, psutil.Process]:
    """The processes of a run's ranks, by rank."""
    found = {}
    for process in processes(mark):
        try:
            rank = process.environ().get("RANK")
            if rank is not None and f"megatron_longrl.{module}" in process.cmdline():
                found[int(rank)] = process
        except psutil.Error:
            continue
    return found


def servers(mark: str) -> list[psutil.Process]:
    """The rollout servers of a run."""
    found = []
    for process in processes(mark):
        try:
            if process.cmdline()[-1:] == ["megatron_longrl.rollout.server.child"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


@dataclass(frozen=True)
class Places:
    """Where a run may leave something."""

    mark: str
    run_folder: Path
    temporary: Path
    """TMPDIR of the run, and of no other."""
    stays: tuple[str, ...] = ()
    """Beginnings of names that may stay there."""

    def left(self, in_folder: bool = True) -> list[str]:
        """What is there that must not outlive the run; but for processes.

        Args:
            in_folder: whether its own folder is looked into.
        """
        found = [*SHARED_MEMORY.iterdir(), *self.temporary.iterdir()]
        if in_folder:
            found += [path for path in self.run_folder.rglob(".*") if path.name != ".metadata"]
        # What torch.compile has made is of use to other runs.
        stays = ("torchinductor_", *self.stays)
        return [str(path) for path in found if not path.name.startswith(stays)]

    def wait(self, seconds: float, in_folder: bool = True) -> tuple[float, list[str]]:
        """Until nothing is left.

        Args:
            in_folder: see :meth:`left`.

        Returns:
            The seconds that it took, and what is left after all of them.
        """
        began = time.monotonic()
        while True:
            alive = [f"process {p.pid}: {_command(p)}" for p in processes(self.mark)]
            left = alive or self.left(in_folder)
            spent = time.monotonic() - began
            if not left or spent > seconds:
                return spent, left
            time.sleep(0.1)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:120]
    except psutil.Error:
        return "that has just ended"


def end(mark: str) -> None:
    """Whatever is left of a run."""
    for process in processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, 9)
