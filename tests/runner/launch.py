"""Runs a part: its output goes to a file, its progress to the terminal."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.runner.parts import ROOT, Part
from tests.runner.results import Results, read_results

NOTHING_SELECTED = 5
"""pytest's exit status where it has selected no test."""
SHOWN_LINES = 400
"""Of what a failed part has printed."""


@dataclass(frozen=True)
class Ended:
    """How a part ended."""

    part: Part
    status: int
    seconds: float
    cpu_seconds: float
    """Of all its processes that have been waited for."""
    output: str
    results: Results

    @property
    def is_ok(self) -> bool:
        """Nothing failed, and pytest came to its end."""
        if not self.part.log:
            return self.status == 0
        return self.status in (0, NOTHING_SELECTED) and not self.results.failures

    @property
    def line(self) -> str:
        """A line of the summary."""
        counts = self.results.counts if self.part.log else ""
        word = "ok" if self.is_ok else "FAILED"
        return f"{self.part.name:<24} {word:<6} {self.seconds:5.0f} s  {counts}".rstrip()


def run_part(part: Part, folder: Path) -> Ended:
    """Run it to its end, and tell about it.

    Args:
        folder: for its log and its output, which are kept there.
    """
    log = folder / part.log
    options = [f"--report-log={log}"] if part.log else []
    written = folder / f"{part.file_name}.txt"
    began, cpu = time.monotonic(), _cpu_seconds()
    with written.open("wb") as output:
        process = subprocess.Popen(
            [*part.command, *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _watch(process, part, log)
        except BaseException:
            # torchrun ends its ranks at SIGTERM.
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            raise
    ended = Ended(
        part,
        process.returncode,
        time.monotonic() - began,
        _cpu_seconds() - cpu,
        written.read_text(encoding="utf-8", errors="replace"),
        read_results(log) if part.log else Results(),
    )
    tell(ended.line)
    if not ended.is_ok:
        _show(ended)
    return ended


def _watch(process: subprocess.Popen[bytes], part: Part, log: Path) -> None:
    """Wait for its end; on a terminal, a line counts the tests meanwhile."""
    while True:
        try:
            process.wait(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            if sys.stdout.isatty():
                done = read_results(log, is_running=True).counts if part.log else "..."
                sys.stdout.write(f"\r\033[K{part.name:<24} {done}")
                sys.stdout.flush()
    if sys.stdout.isatty():
        sys.stdout.write("\r\033[K")


def _show(ended: Ended) -> None:
    """What it printed, without the lines of dots."""
    lines = [line for line in ended.output.splitlines() if not _is_progress(line)]
    if len(lines) > SHOWN_LINES:
        left = f"[{len(lines) - SHOWN_LINES} lines left out]"
        lines = [*lines[: SHOWN_LINES // 2], left, *lines[-SHOWN_LINES // 2 :]]
    tell("\n".join(lines))


def _is_progress(line: str) -> bool:
    marks = line.partition(" [")[0]
    return bool(marks) and not set(marks) - set(".sxXFE")


def tell(text: str) -> None:
    """Print."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
