"""What each rank tells of itself while it runs, in files that outlive it.

All ranks of a launch are on one machine, and share a folder. A rank writes there which test it is
in, and rank 0 every report; so its guard (:mod:`tests.distributed.guard`) can tell what happened
whatever became of the rank. Nothing here needs torch, which the guards do not load.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "0"))
PATIENCE = float(os.environ.get("LONGRL_TEST_PATIENCE", "1"))
"""Factor on all limits of time, for machines that are slow or busy with others' work."""

STACKS_SIGNAL = signal.SIGUSR2
"""On it a rank writes the stacks of its threads to its file, even from within C code."""


@dataclass(frozen=True)
class State:
    """Where a rank is."""

    pid: int
    test: str = ""
    """Empty before the first test and after the last."""
    phase: str = "start"
    """``start``, ``collection``, then of each test ``setup``, ``call`` and ``teardown``, at last
    ``end`` and ``ended``."""
    since: float = 0.0
    """When the test began, by the monotonic clock, which all processes share."""
    outcome: str = ""
    """How the phase has ended here; set while the rank waits for the others to end it."""
    patience: float = 1.0
    """Factor of the test's own: ``@pytest.mark.patience(3)``."""


@dataclass(frozen=True)
class Pulse:
    """For how long a rank's main thread has been in the same call of the same function."""

    since: float
    place: str


def launch_folder() -> Path:
    """The folder that the ranks of this launch share, from one of torchrun's own children."""
    name = f"longrl-ranks-{os.getuid()}-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    return Path(tempfile.gettempdir()) / name


class Folder:
    """The files, by rank."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, rank: int, kind: str) -> Path:
        return self.path / f"rank-{rank}.{kind}"

    def write(self, rank: int, kind: str, values: object) -> None:
        """Replace a file at once: whoever reads it sees the old or the new one."""
        new = self.file(rank, kind + ".new")
        new.write_text(json.dumps(values), encoding="utf-8")
        new.replace(self.file(rank, kind))

    def read(self, rank: int, kind: str) -> Any:
        """None where the rank has written nothing."""
        try:
            return json.loads(self.file(rank, kind).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def text(self, rank: int, kind: str) -> str:
        try:
            return self.file(rank, kind).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def state(self, rank: int) -> State | None:
        values = self.read(rank, "state")
        return values and State(**values)

    def pulse(self, rank: int) -> Pulse | None:
        values = self.read(rank, "pulse")
        return values and Pulse(**values)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """What rank 0 has appended; a line that it was killed over is not there."""
        whole, _, _ = self.text(0, kind).rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


class Progress:
    """The rank's side."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self.state = State(os.getpid())
        self._journal = self.folder.file(RANK, "reports").open("a", encoding="utf-8")
        self._stacks = self.folder.file(RANK, "stacks").open("w", encoding="utf-8")
        self._crash = self.folder.file(RANK, "crash").open("w", encoding="utf-8")
        self.tell()

    def tell(self, **changes: object) -> None:
        """Write the state with these changes."""
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        self.folder.write(RANK, "state", asdict(self.state))

    def note(self, report: dict[str, Any]) -> None:
        """Add a report to the journal."""
        self._journal.write(json.dumps(report, default=str) + "\n")
        self._journal.flush()

    def start(self) -> None:
        """Be ready for signals, and start the pulse."""
        faulthandler.enable(self._crash)
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True)
        threading.Thread(target=self._beat, daemon=True, name="pulse").start()

    def _beat(self) -> None:
        main = threading.main_thread().ident or 0
        while True:
            frame = sys._current_frames().get(main)
            if frame is not None and not seen_before(frame):
                code = frame.f_code
                place = f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
                self.folder.write(RANK, "pulse", asdict(Pulse(time.monotonic(), place)))
            del frame  # It would keep the test's variables, and with them its groups.
            time.sleep(min(3.0, 3.0 * PATIENCE))


def seen_before(frame: FrameType) -> bool:
    """Whether this very call was marked before; it is then.

    To keep the frame for comparison would keep its variables. The mark is an attribute that only
    debuggers of single instructions read, and each call begins without it.
    """
    seen = frame.f_trace_opcodes
    frame.f_trace_opcodes = True
    return seen
