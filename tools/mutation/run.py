"""Every suite against every mutant, until the first failure, and no test twice."""

from __future__ import annotations

import fcntl
import queue
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.mutation.copies import changed, make_copy
from tools.mutation.evidence import Decision, decide, read_evidence
from tools.mutation.files import append_line, read_lines
from tools.mutation.launch import Limit, end_all, launch, unfinished_test
from tools.mutation.mutants import Mutant, mutated, text_hash
from tools.mutation.parts import file_of, part_of
from tools.mutation.reach import Measure, read_measure, unmeasured
from tools.mutation.same import is_same
from tools.mutation.suites import Suite, tests_of

SLACK_SECONDS = 90.0
FACTOR = 3.0
"""A test may take so many seconds more, and so many times as long, than it did when measured."""

NOTHING_FAILED = (0, 5)
"""Exit statuses of pytest: all passed, and none found."""


class Stopped(Exception):
    """The user has had enough."""


class Cores:
    """So many single processes at a time, or one launch of several."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = number
        self._waiting = 0
        self._change = threading.Condition()

    @contextmanager
    def taken(self, all_of_them: bool) -> Iterator[None]:
        wanted = self.number if all_of_them else 1
        with self._change:
            self._waiting += all_of_them
            # Who wants all of them is let in before others come again.
            self._change.wait_for(
                lambda: self._free >= wanted and (all_of_them or not self._waiting)
            )
            self._waiting -= all_of_them
            self._free -= wanted
            self._change.notify_all()
        try:
            yield
        finally:
            with self._change:
                self._free += wanted
                self._change.notify_all()


@dataclass
class Plan:
    """What all workers share."""

    work: Path
    suites: Sequence[Suite]
    measured: dict[str, str]
    """Names of measures by suite."""
    measures: dict[str, Measure]
    chosen: dict[str, set[str] | None]
    cores: Cores
    alike: Collection[str] = ()
    """Files that count as the same in all checkouts."""
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def make(
        cls, work: Path, suites: Sequence[Suite], jobs: int, alike: Collection[str] = ()
    ) -> Plan:
        """Read measures, and collect what the expressions choose."""
        measured = {suite.name: suite.measured_as(work) for suite in suites}
        measures = {name: read_measure(work, name) for name in set(measured.values())}
        for name in sorted(measures):
            if missing := unmeasured(work, name):
                sys.stdout.write(f"{name}: {', '.join(missing)} not measured, so not run\n")
        chosen = {suite.name: tests_of(work, suite) for suite in suites}
        for suite in suites:
            unknown = (chosen[suite.name] or set()) - set(measures[measured[suite.name]].tests)
            if unknown:
                sys.stdout.write(f"{suite.name}: {len(unknown)} tests were not measured\n")
        return cls(work, suites, measured, measures, chosen, Cores(jobs), alike)

    @property
    def results(self) -> Path:
        return self.work / "results.jsonl"

    def events(self, mutant: Mutant, suite: Suite) -> Path:
        """The log of a mutant's runs under a suite."""
        return self.work / "evidence" / mutant.id / f"{suite.name}.jsonl"

    def counts(self, suite: str, other: str, test: str) -> bool:
        """Whether a test is the same in two suites. Whether both hold it is seen elsewhere."""
        checkouts = {each.name: each.checkout for each in self.suites}
        return is_same(checkouts[suite], checkouts[other], file_of(test), self.alike)

    def broken(self, measure: str) -> set[str]:
        """Tests that were found to fail by themselves, without any fault."""
        rows = read_lines(self.work / "checked" / f"{measure}.jsonl")
        return {row["test"] for row in rows if not row["passes"]}

    def tests(self, mutant: Mutant, source: str, suite: Suite) -> list[str]:
        """Those of a suite that reach a mutant, in the order in which they run.

        Raises:
            ValueError: the source has changed since it was measured.
        """
        name = self.measured[suite.name]
        measure, chosen = self.measures[name], self.chosen[suite.name]
        if measure.sources[mutant.file] != mutant.source:
            raise ValueError(f"{mutant.file} has changed between draw and coverage {name}")
        reaching = measure.reaching(mutant.file, source, mutant.lines) - self.broken(name)
        return measure.in_order(reaching if chosen is None else reaching & chosen)


def run(
    work: Path,
    mutants: Sequence[Mutant],
    suites: Sequence[Suite],
    jobs: int = 1,
    alike: Collection[str] = (),
) -> None:
    """Results of all mutants and suites that have none yet, appended to ``results.jsonl``.

    Raises:
        RuntimeError: a worker has failed.
    """
    with only_one(work):
        plan = Plan.make(work, suites, jobs, alike)
        done = {(row["mutant"], row["suite"]) for row in read_lines(plan.results)}
        todo: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
        for mutant in mutants:
            if any((mutant.id, suite.name) not in done for suite in suites):
                todo.put(mutant)
        workers = [Worker(plan, number, todo, done) for number in range(jobs)]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(1.0)
        finally:
            plan.stop.set()
            end_all(f"{work.resolve()}:")
            for worker in workers:
                worker.join(60.0)
        if failed := [worker.error for worker in workers if worker.error is not None]:
            raise RuntimeError(str(failed[0])) from failed[0]


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """One run at a time in a folder; what an earlier one has left running is ended.

    Raises:
        RuntimeError: there is one.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another one is at work in {work}") from None
        end_all(f"{work.resolve()}:")
        yield


class Worker(threading.Thread):
    """Takes mutants one after the other, in copies of its own."""

    def __init__(
        self,
        plan: Plan,
        number: int,
        todo: queue.SimpleQueue[Mutant],
        done: set[tuple[str, str]],
    ) -> None:
        super().__init__(daemon=True)
        self._plan, self._number, self._todo, self._done = plan, number, todo, done
        self._copies: dict[Path, Path] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._plan.stop.is_set():
                self._examine(self._todo.get_nowait())
        except (queue.Empty, Stopped):
            return
        except BaseException as error:
            self.error = error
            self._plan.stop.set()

    def _copy(self, suite: Suite) -> Path:
        checkout = suite.checkout
        if checkout not in self._copies:
            name = f"{self._plan.measured[suite.name]}-{self._number}"
            self._copies[checkout] = make_copy(self._plan.work / "copies" / name, checkout)
        return self._copies[checkout]

    def _examine(self, mutant: Mutant) -> None:
        for suite in self._plan.suites:
            if (mutant.id, suite.name) not in self._done:
                self._examine_under(mutant, suite)

    def _examine_under(self, mutant: Mutant, suite: Suite) -> None:
        plan, copy = self._plan, self._copy(suite)
        source = (copy / mutant.file).read_text(encoding="utf-8")
        if text_hash(source) != mutant.source:
            raise ValueError(f"{mutant.file} has changed since the draw")
        began, ran = time.monotonic(), 0
        while True:
            tests = plan.tests(mutant, source, suite)
            decision = self._decide(mutant, suite, tests)
            if decision.is_open:
                ran += 1
                self._launch(mutant, suite, copy, source, decision.remaining)
                continue
            own = decision.caught_by and suite.name in decision.seen_by
            if not own or self._passes_alone(suite, copy, decision.caught_by):
                break
            void = {"event": "void", "test": decision.caught_by}
            append_line(plan.events(mutant, suite), void)
        others = [name for name in decision.seen_by if name != suite.name]
        row = {
            "mutant": mutant.id,
            "suite": suite.name,
            "outcome": "caught" if decision.caught_by else "survived" if tests else "unreached",
            "test": decision.caught_by,
            "how": decision.how,
            "tests": len(tests),
            "seconds": round(time.monotonic() - began, 1) if ran else 0.0,
            "inferred": others if not ran else [],
        }
        with plan.lock:
            append_line(plan.results, row)
            by = f" by {row['test']}" if row["test"] else ""
            sys.stdout.write(
                f"{mutant.id} {suite.name}: {row['outcome']}{by} ({row['seconds']} s)\n"
            )
            sys.stdout.flush()

    def _decide(self, mutant: Mutant, suite: Suite, tests: Sequence[str]) -> Decision:
        evidence = {
            each.name: read_evidence(read_lines(self._plan.events(mutant, each)))
            for each in self._plan.suites
        }
        return decide(suite.name, tests, evidence, self._plan.counts)

    def _launch(
        self, mutant: Mutant, suite: Suite, copy: Path, source: str, remaining: Sequence[str]
    ) -> None:
        """Run what remains of the first part, until the first failure."""
        plan = self._plan
        part = part_of(remaining[0])
        tests = [test for test in remaining if part.holds(test)]
        events = plan.events(mutant, suite)
        text = mutated(source, mutant.operator, mutant.occurrence)
        for attempt in (1, 2):
            heard = len(read_lines(events))
            with plan.cores.taken(part.alone), changed(copy, mutant.file, text):
                if plan.stop.is_set():
                    raise Stopped
                launched = launch(
                    part,
                    copy,
                    events,
                    work=plan.work,
                    tests=tests,
                    options=["-x"],
                    limit=self._limit(suite),
                )
            if plan.stop.is_set():
                raise Stopped
            news = read_lines(events)[heard:]
            for row in what_follows(news, tests, launched.status, is_last=attempt == 2):
                append_line(events, row)
                news.append(row)
            if launched.status in NOTHING_FAILED or read_evidence(news).failed:
                return

    def _limit(self, suite: Suite) -> Limit:
        measure = self._plan.measures[self._plan.measured[suite.name]]
        return lambda test: SLACK_SECONDS + FACTOR * measure.seconds(test)

    def _passes_alone(self, suite: Suite, copy: Path, test: str) -> bool:
        """Whether a test that catches something passes without a fault; looked at once for each."""
        plan, measure = self._plan, self._plan.measured[suite.name]
        checked = plan.work / "checked" / f"{measure}.jsonl"
        with plan.lock:
            known = {row["test"]: row["passes"] for row in read_lines(checked)}
        if test not in known:
            part = part_of(test)
            own = plan.work / "checked" / f"{measure}-{self._number}.log.jsonl"
            heard = len(read_lines(own))
            with plan.cores.taken(part.alone):
                limit = self._limit(suite)
                launched = launch(part, copy, own, work=plan.work, tests=[test], limit=limit)
            if plan.stop.is_set():
                raise Stopped
            seen = read_evidence(read_lines(own)[heard:])
            known[test] = launched.status == 0 and test in seen.passed
            with plan.lock:
                append_line(checked, {"test": test, "passes": known[test]})
        return known[test]


def what_follows(
    news: Sequence[Mapping[str, str]], tests: Sequence[str], status: int | None, *, is_last: bool
) -> list[dict[str, str]]:
    """What a launch shows that no test could say itself.

    A test in the midst of which the launch has ended has failed. So has the launch that broke off
    before any test, or after all of them, if it does so twice: the test at hand stands for it. What
    was not run by a launch that ended well does not exist any more.

    Args:
        news: what the launch has told.
        status: its exit status; None where a test has taken too long.
        is_last: whether there will be no other attempt.
    """
    evidence = read_evidence(news)
    if status in NOTHING_FAILED:
        known = evidence.passed | set(evidence.failed)
        return [_end(test, "skipped", "not run") for test in tests if test not in known]
    if evidence.failed:
        return []
    running = unfinished_test(news)
    if running is not None:
        return [_end(running, "failed", "crash")]
    if not is_last:
        return []
    left = [test for test in tests if test not in evidence.passed]
    return [_end((left or list(tests))[0], "failed", "launch")]


def _end(test: str, outcome: str, how: str) -> dict[str, str]:
    return {"event": "end", "test": test, "outcome": outcome, "how": how}
