"""One pytest on every rank of one torchrun launch, in step.

    torchrun --nproc-per-node 2 -m pytest tests/distributed     (tests/run.sh does it)

After each phase of a test the ranks tell each other how it ended, over a store of their own, which
works whatever state the test has left the process groups in. A test that fails on one rank fails on
all, and rank 0 alone prints, with the other ranks' tracebacks. A rank that does not come out of a
test ends the session.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import faulthandler
import gc
import io
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from _pytest.config import create_terminal_writer

from megatron_longrl.parallel.groups import destroy_parallel
from tests.distributed.families import write_family
from tests.distributed.layouts import write_data

RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "0"))

TEST_SECONDS = 270
"""Longest time for a test; pytest's faulthandler_timeout shows the stacks shortly before."""

GRACE_SECONDS = 30
"""Time for the other ranks to come out of a test that failed here; where they wait in a collective
for the failed one, they never will."""


class OutOfStep(Exception):
    """Some ranks are still inside a test that others have left."""


class Peers:
    """The ranks of the launch, and a store through which they exchange small values."""

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        self._exchanges = 0
        self._worlds = 0
        self.world_is_suspect = False

    @property
    def store(self) -> dist.Store:
        if self._store is None:
            self._store, *_ = next(dist.rendezvous("env://"))
        return self._store

    def exchange(self, value: object, seconds: float) -> list:
        """The values of all ranks, in rank order; raises OutOfStep when one is late."""
        store = dist.PrefixStore(f"pytest/{self._exchanges}", self.store)
        self._exchanges += 1
        store.set(str(RANK), base64.b64encode(pickle.dumps(value)).decode("ascii"))
        values = []
        for rank in range(WORLD_SIZE):
            try:
                store.wait([str(rank)], datetime.timedelta(seconds=seconds))
            except RuntimeError:
                raise OutOfStep(f"rank {rank} is not there after {seconds:.0f} s") from None
            values.append(pickle.loads(base64.b64decode(store.get(str(rank)))))
        return values

    def start_world(self) -> None:
        """torch.distributed over all ranks, anew where a test has ended it, or has failed.

        In the midst of a failed test the ranks may have made different groups, after which they
        would never find each other.
        """
        if self.world_is_suspect and dist.is_initialized():
            destroy_parallel()
        self.world_is_suspect = False
        if not dist.is_initialized():
            self._worlds += 1
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(f"world/{self._worlds}", self.store),
                rank=RANK,
                world_size=WORLD_SIZE,
                timeout=datetime.timedelta(seconds=TEST_SECONDS),
            )


PEERS = Peers()


# ---- Fixtures ----


@pytest.fixture(autouse=True)
def world(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test finds torch.distributed started (gloo, all ranks), and its groups end with it.

    A gloo group keeps threads that never rest, and open files: groups that pile up slow down
    everything after them, until no file can be opened. Models and optimizers hold groups in circles
    of references, which only the garbage collector unties.
    A file whose fixtures hold groups over several tests says so with ``GROUPS_OUTLIVE_TESTS``.
    """
    PEERS.start_world()
    yield
    if not getattr(request.module, "GROUPS_OUTLIVE_TESTS", False):
        destroy_parallel()
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def groups_end_with_the_file() -> Iterator[None]:
    """The last groups of a file end with it."""
    yield
    destroy_parallel()


@pytest.fixture
def shared_path(tmp_path: Path) -> Path:
    """One empty folder for all ranks."""
    return PEERS.exchange(tmp_path, GRACE_SECONDS)[0]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of :mod:`tests.distributed.layouts`, one folder for all ranks."""
    mine = tmp_path_factory.mktemp("tiny")
    folder = PEERS.exchange(mine, GRACE_SECONDS)[0]
    try:
        if RANK == 0:
            write_data(folder)
    finally:
        PEERS.exchange(None, TEST_SECONDS)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of :mod:`tests.distributed.families` by family, the same for all ranks."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = PEERS.exchange(tmp_path_factory.mktemp(family), GRACE_SECONDS)[0]
            try:
                if RANK == 0:
                    write_family(made[family], family)
            finally:
                PEERS.exchange(None, TEST_SECONDS)
        return made[family]

    return folder


# ---- Which tests run ----


def ranks_needed(path: Path) -> int:
    return 4 if "four_ranks" in path.parts else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        needed = ranks_needed(item.path)
        if here in item.path.parents and needed != WORLD_SIZE:
            reason = f"needs {needed} ranks: bash tests/run.sh {item.path.relative_to(Path.cwd())}"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session: pytest.Session) -> None:
    if WORLD_SIZE > 1:
        names = PEERS.exchange([item.nodeid for item in session.items], TEST_SECONDS)
        if any(other != names[0] for other in names):
            raise pytest.UsageError("the ranks have collected different tests")
    gc.freeze()  # What is there now stays; the collections after each test need not look at it.


# ---- Agreement on each phase (setup, call, teardown) of each test ----


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if WORLD_SIZE > 1 and not STOP:
        agree_on(report)
    return report  # type: ignore[return-value]


def agree_on(report: pytest.TestReport) -> None:
    """Make the report a failure where any rank has failed, and keep the ranks' tracebacks in it."""
    mine = (report.outcome, report.longreprtext)
    try:
        all_ranks = PEERS.exchange(mine, GRACE_SECONDS if report.failed else TEST_SECONDS)
    except OutOfStep as error:
        STOP.append(f"{report.nodeid}: {error}, so the session ends here")
        PEERS.store.set(GIVEN_UP, "")
        fail(report, [(RANK, report.longreprtext), (RANK, STOP[0])])
        return
    outcomes = [outcome for outcome, _ in all_ranks]
    if "failed" in outcomes:
        fail(report, [(rank, text) for rank, (o, text) in enumerate(all_ranks) if o == "failed"])
    elif len(set(outcomes)) > 1:
        fail(report, [(rank, f"{outcome} here") for rank, outcome in enumerate(outcomes)])


def fail(report: pytest.TestReport, texts: list[tuple[int, str]]) -> None:
    PEERS.world_is_suspect = True
    report.outcome = "failed"
    report.longrepr = "\n".join(f"---- rank {rank} ----\n{text}" for rank, text in texts if text)


STOP: list[str] = []
"""Why the session cannot go on."""

GIVEN_UP = "pytest/given-up"
"""Set in the store by a rank that has waited long enough for the others."""


def pytest_runtest_logfinish() -> None:
    if STOP:
        pytest.exit(STOP[0], returncode=1)


# ---- A rank that hangs ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if WORLD_SIZE <= 1:
        return (yield)
    done = threading.Event()
    store = PEERS.store.clone()  # type: ignore[attr-defined]  # One client a thread.
    threading.Thread(target=watch, args=(item, done, store), daemon=True).start()
    try:
        return (yield)
    finally:
        done.set()


def watch(item: pytest.Item, done: threading.Event, store: dist.Store) -> None:
    """End the process when the test takes too long, or when another rank has given up waiting."""
    deadline = time.monotonic() + TEST_SECONDS + 2 * GRACE_SECONDS
    while not done.wait(1.0):
        given_up = store.check([GIVEN_UP])
        late = time.monotonic() > deadline
        if not (given_up or late) or STOP:
            continue
        plugins = item.config.pluginmanager
        plugins.getplugin("capturemanager").suspend_global_capture(in_=True)
        sys.stderr.write(f"\nrank {RANK} is still inside {item.nodeid}:\n")
        faulthandler.dump_traceback(sys.stderr)
        if RANK == 0:
            plugins.getplugin("terminalreporter").summary_failures()
            sys.stdout.flush()
        if RANK == 0 or late:
            os._exit(1)
        return  # torchrun ends this rank after rank 0, which prints for all.


# ---- Only rank 0 prints ----

SILENCED = io.StringIO()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if RANK:
        config.option.xmlpath = None


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if RANK and reporter is not None:
        reporter._tw = create_terminal_writer(session.config, SILENCED)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # Failed tests are in rank 0's report; what else goes wrong (a module that cannot be imported,
    # rank 0 that is still inside the test) is not.
    if RANK and (STOP or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)):
        sys.stderr.write(f"rank {RANK}:\n{SILENCED.getvalue()}\n")
    if dist.is_initialized() and not STOP:
        dist.destroy_process_group()
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # torchrun takes any other status for a crash.


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    # torchrun ends all ranks as soon as one fails: rank 0 prints its summary first.
    if WORLD_SIZE <= 1:
        return
    if RANK == 0:
        PEERS.store.set("pytest/printed", "")
    else:
        with contextlib.suppress(RuntimeError):
            PEERS.store.wait(["pytest/printed"], datetime.timedelta(seconds=GRACE_SECONDS))
    if STOP:
        sys.stdout.flush()
        os._exit(1)  # The collective that was left alone would hold up the ordinary end.
