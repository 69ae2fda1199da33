"""The ranks agree on what they have collected, and on how each phase of each test has ended."""

from __future__ import annotations

import os

import pytest

from tests.distributed.peers import PEERS
from tests.distributed.progress import RANK
from tests.distributed.told import Failure, RanksRepr, told_once


def agree_on(report: pytest.TestReport) -> None:
    """Make the report a failure where any rank has failed, and keep the ranks' tracebacks in it."""
    message = ""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else report.longreprtext
    printed = [] if RANK == 0 or not report.failed else report.sections
    all_ranks = PEERS.exchange((report.outcome, report.longreprtext, message, printed))
    outcomes = [outcome for outcome, *_ in all_ranks]
    failures = []
    if "failed" in outcomes:
        for rank, (outcome, text, line, sections) in enumerate(all_ranks):
            if outcome == "failed":
                texts = [text, *(f"{title:-^80}\n{content}" for title, content in sections)]
                failures.append(Failure(rank, "\n".join(texts), line))
    elif len(set(outcomes)) > 1:
        failures = [Failure(r, f"{o} here", f"{o} here") for r, o in enumerate(outcomes)]
    if failures:
        PEERS.world_is_suspect = True
        report.outcome = "failed"
        report.longrepr = told_once(failures)


class Collection:
    """What this rank could not collect, and whether the others have collected the same."""

    def __init__(self) -> None:
        self._failed: list[pytest.CollectReport] = []

    def note(self, report: pytest.CollectReport) -> None:
        """Keep a report of what could not be collected."""
        if report.failed:
            self._failed.append(report)

    def agree(self, session: pytest.Session) -> None:
        """No rank runs a test where any could not collect, or has collected others."""
        mine = [item.nodeid for item in session.items]
        failed = {report.nodeid: report.longreprtext for report in self._failed}
        everyone = PEERS.exchange((mine, failed))
        texts: dict[str, list[Failure]] = {}
        for rank, (_, theirs) in enumerate(everyone):
            for nodeid, text in theirs.items():
                last = text.strip().rpartition("\n")[2]
                texts.setdefault(nodeid, []).append(Failure(rank, text, last))
        for report in self._failed:  # The terminal prints them at the end.
            report.longrepr = told_once(texts[report.nodeid])
        for nodeid in [nodeid for nodeid in texts if nodeid not in failed]:
            self._fail(session, nodeid, told_once(texts[nodeid]))
        if not texts and any(names != mine for names, _ in everyone):
            different = differences([names for names, _ in everyone])
            where = f"{os.path.commonpath([n.partition('::')[0] for n in mine] or ['tests'])}"
            self._fail(session, where or "tests", different)

    def _fail(self, session: pytest.Session, nodeid: str, why: RanksRepr) -> None:
        """Here nothing was wrong; pytest stops as it does where something is."""
        session.testsfailed += 1
        report = pytest.CollectReport(nodeid, "failed", why, [])
        session.config.hook.pytest_collectreport(report=report)


def differences(names: list[list[str]]) -> RanksRepr:
    """Of the tests that the ranks have collected."""
    head = "the ranks have collected different tests"
    lines = [head]
    for rank, theirs in enumerate(names[1:], 1):
        for one, other, missing in (
            (rank, 0, sorted(set(theirs) - set(names[0]))),
            (0, rank, sorted(set(names[0]) - set(theirs))),
        ):
            if missing:
                shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
                lines.append(f"rank {one} has and rank {other} has not: {shown}")
        if set(theirs) == set(names[0]) and theirs != names[0]:
            pairs = zip(theirs, names[0], strict=True)
            first = next(i for i, (one, other) in enumerate(pairs) if one != other)
            lines.append(
                f"in another order: number {first} is {names[0][first]} on rank 0, "
                f"{theirs[first]} on rank {rank}"
            )
    return RanksRepr("\n".join(lines), head)
