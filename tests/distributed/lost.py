"""The account of a session that a rank's death or a hang has ended: in print, and as a junit file.

The tests before the one that was lost stand as rank 0 has noted them; the one that was lost has
failed; those after it are told as not run, and count as skipped.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from _pytest import junitxml

from tests.distributed.progress import WORLD_SIZE, Folder, State
from tests.distributed.told import RanksRepr, and_so_on

COLLECTION = "tests/distributed::collection of the tests"
END = "tests/distributed::end of the session"
"""In place of a test's name."""


@dataclass(frozen=True)
class Loss:
    """What has ended the session."""

    reason: str
    ranks: tuple[int, ...] = ()
    """Those to whom it happened, first; empty for all."""

    @classmethod
    def by_death(cls, statuses: Mapping[int, int]) -> Loss:
        by_end: dict[str, list[int]] = {}
        for rank, status in statuses.items():
            by_end.setdefault(how_it_ended(status), []).append(rank)
        parts = [f"{and_so_on(ranks)} {how}" for how, ranks in by_end.items()]
        return cls("; ".join(parts), tuple(statuses))

    @classmethod
    def by_leaving(cls, ranks: list[int]) -> Loss:
        left = "has left the session" if len(ranks) == 1 else "have left the session"
        return cls(f"{and_so_on(ranks)} {left}, and another is still inside", tuple(ranks))


def how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended itself with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}"


class Story:
    """Made by rank 0's guard when the session begins, told when it ends before its time."""

    def __init__(self, config: pytest.Config, folder: Folder) -> None:
        self._config = config
        self._folder = folder
        junitxml.pytest_configure(config)
        self._xml = config.stash.get(junitxml.xml_key, None)
        if self._xml is not None:
            self._xml.pytest_sessionstart()

    def tell(self, loss: Loss, states: Mapping[int, State], living: set[int]) -> None:
        """Print it, and write the file.

        Args:
            states: of the ranks that have begun.
            living: the ranks that had not ended, which were asked for their stacks.
        """
        known = [states[rank] for rank in (*loss.ranks, *states) if rank in states]
        about = next((state for state in known if state.test), known[0] if known else State(0))
        test = about.test or (END if about.phase.startswith("end") else COLLECTION)
        where = f"in its {about.phase}" if about.test else ""
        seconds = f"{time.monotonic() - about.since:.0f} s after it began" if about.test else ""
        headline = ", ".join(part for part in (loss.reason, where, seconds) if part)
        order = [*loss.ranks, *(r for r in range(WORLD_SIZE) if r not in loss.ranks)]
        texts = [self._of_rank(rank, states.get(rank), rank in living) for rank in order]
        text = "\n".join([headline, *texts])
        when: Literal["setup", "call", "teardown"] = "call"
        if about.phase in ("setup", "teardown"):
            when = about.phase  # type: ignore[assignment]

        reports = self._journal()
        reports.append(self._report(test, "failed", RanksRepr(text, headline), when))
        reported = {report.nodeid for report in reports}
        left = [nodeid for nodeid in self._collected() if nodeid not in reported]
        path = test.partition("::")[0]
        reason = (path, 0, f"Skipped: not run, as the session ended in {test}")
        reports += [self._report(nodeid, "skipped", reason, "setup") for nodeid in left]
        if self._xml is not None:
            for report in reports:
                self._xml.pytest_runtest_logreport(report)
            self._xml.pytest_sessionfinish()
        self._log(reports)
        self._print(reports, len(left))

    def _log(self, reports: list[pytest.TestReport]) -> None:
        """Write pytest-reportlog's file anew: rank 0 may have ended in the midst of a line."""
        path = self._config.getoption("report_log", None)
        if not path:
            return
        with Path(path).open("w", encoding="utf-8") as file:
            for report in reports:
                data = self._config.hook.pytest_report_to_serializable(
                    config=self._config, report=report
                )
                file.write(json.dumps(data) + "\n")

    def _print(self, reports: list[pytest.TestReport], left: int) -> None:
        failed = [report for report in reports if report.failed]
        write = sys.stdout.write
        write("\n\n")
        for report in failed:
            write(f"{f' {report.nodeid} ':_^100}\n{report.longreprtext}\n")
        write(f"{' short test summary info ':=^100}\n")
        for report in failed:
            message = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
            write(f"FAILED {report.nodeid} - {message.partition(chr(10))[0]}\n")
        names = {report.nodeid for report in failed}
        passed = {r.nodeid for r in reports if r.when == "call" and r.passed} - names
        write(f"{len(names)} failed, {len(passed)} passed, {left} not run\n")
        sys.stdout.flush()

    def _of_rank(self, rank: int, state: State | None, living: bool) -> str:
        """One rank's part: where it was, and its stacks."""
        head = f"---- rank {rank}: "
        if state is None:
            return f"{head}has not begun ----"
        place = f"in the {state.phase} of {state.test}" if state.test else f"phase: {state.phase}"
        if state.outcome:
            place += f", {state.outcome}, and waits for the others"
        end = self._folder.read(rank, "end")
        if living and state.outcome:  # Its stack is that of waiting.
            failed = state.outcome == "failed"
            stacks = essence(self._folder.text(rank, "failure")) if failed else ""
        elif living:
            stacks = stacks_in(self._folder.text(rank, "stacks"))
            stacks = stacks or "It has not answered the signal that asks for its stacks."
        elif crash := self._folder.text(rank, "crash"):
            stacks = stacks_in(crash)
        elif end and state.phase != "ended":
            stacks = f"There is no traceback: {why_none(end['status'])}"
            pulse = self._folder.pulse(rank)
            if pulse is not None and pulse.since > state.since:
                stacks += f"\nOf late it was seen at {shorter(pulse.place)}."
        else:
            stacks = ""
        if end:
            place += f"; its memory peaked at {end['memory']:.1f} GiB"
        printed = self._folder.text(rank, "printed").strip() if state.phase == "ended" else ""
        return "\n".join(part for part in (f"{head}{place} ----", stacks, printed) if part)

    def _journal(self) -> list[pytest.TestReport]:
        reports = []
        for line in self._folder.lines("reports"):
            message = line.pop("message", "")
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=line
            )
            if isinstance(report.longrepr, str):
                report.longrepr = RanksRepr(report.longrepr, message)
            elif isinstance(report.longrepr, list):  # JSON knows no tuples.
                report.longrepr = tuple(report.longrepr)
            reports.append(report)
        return reports

    def _collected(self) -> list[str]:
        return self._folder.read(0, "tests") or []

    def _report(
        self,
        nodeid: str,
        outcome: Literal["failed", "skipped"],
        longrepr: RanksRepr | tuple[str, int, str],
        when: Literal["setup", "call", "teardown"],
    ) -> pytest.TestReport:
        path, _, name = nodeid.partition("::")
        return pytest.TestReport(nodeid, (path, 0, name), {}, outcome, longrepr, when)


def why_none(status: int) -> str:
    if status == -signal.SIGKILL:
        return (
            "nothing can be done in a process upon SIGKILL. The kernel sends it where memory "
            "runs out."
        )
    if status < 0:
        return "the signal has ended the process before it could write one."
    return "the process was ended by os._exit, or by C code that calls exit."


def essence(traceback: str) -> str:
    """A traceback of pytest; where libraries have a large part in it, places and errors alone."""
    lines = shorter(traceback).splitlines()
    if len(lines) > 40:
        lines = [line for line in lines if re.match(r"[>E] |\S+:\d+: ", line)]
    return "\n".join(lines)


def shorter(text: str) -> str:
    """Paths within the working folder by their last part."""
    return text.replace(str(Path.cwd()) + os.sep, "")


def stacks_in(dump: str) -> str:
    """The stacks that faulthandler has written, main thread first, without what is not the test's:
    pytest's own frames, the thread of the pulse, and the list of C modules."""
    threads = []
    for thread in re.split(r"\n\n+", dump.strip()):
        lines = [x for x in thread.splitlines() if not x.startswith("Extension modules:")]
        if any("distributed/progress.py" in line and "_beat" in line for line in lines):
            continue
        outside = ("/_pytest/", "/pluggy/", "<frozen runpy>", "/pytest/__main__.py")
        lines = [line for line in lines if not any(part in line for part in outside)]
        if lines:
            threads.append(shorter("\n".join(lines)))
    # faulthandler begins with the youngest; of a crash, the first lines name the signal.
    if threads and threads[0].startswith("Fatal"):
        return "\n".join([threads[0], *reversed(threads[1:])])
    return "\n".join(reversed(threads))
