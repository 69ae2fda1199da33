"""One pytest on every rank of one torchrun launch, in step.

    torchrun --nproc-per-node 2 -m pytest tests/distributed     (tests/run.sh does it)

After each phase of a test the ranks tell each other how it ended, over a store of their own, which
works whatever state the test has left the process groups in. A test that fails on one rank fails on
all, and rank 0 alone prints, with the other ranks' tracebacks (:mod:`tests.distributed.agreement`).
A rank that dies or does not come out of a test ends the session, and is named by the guards
(:mod:`tests.distributed.guard`).

What loads torch is imported where it is used: the guards are made before, and stay small.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.config import create_terminal_writer

from tests.distributed.agreement import Collection, agree_on
from tests.distributed.guard import stand_guard
from tests.distributed.peers import PEERS
from tests.distributed.progress import RANK, WORLD_SIZE, Progress

PROGRESS: list[Progress] = []
"""This rank's, once it has a guard."""

COLLECTION = Collection()


# ---- Fixtures ----


@pytest.fixture(autouse=True)
def world(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test finds torch.distributed started (gloo, all ranks), and groups that nobody uses.

    A file whose fixtures hold groups over several tests says so with ``GROUPS_OUTLIVE_TESTS``.
    """
    PEERS.start_world()
    yield
    if not getattr(request.module, "GROUPS_OUTLIVE_TESTS", False):
        PEERS.leave_groups()


@pytest.fixture(autouse=True, scope="module")
def groups_end_with_the_file() -> Iterator[None]:
    """The last groups of a file are free after it, and so is the memory of its models.

    Models and optimizers are circles of references. To collect them after each test would take half
    a second once vLLM is imported.
    """
    yield
    PEERS.leave_file()


@pytest.fixture
def shared_path(tmp_path: Path) -> Path:
    """One empty folder for all ranks."""
    return PEERS.exchange(tmp_path)[0]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of :mod:`tests.distributed.layouts`, one folder for all ranks."""
    from tests.distributed.layouts import write_data

    mine = tmp_path_factory.mktemp("tiny")
    folder = PEERS.exchange(mine)[0]
    try:
        if RANK == 0:
            write_data(folder)
    finally:
        PEERS.exchange(None)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of :mod:`tests.distributed.families` by family, the same for all ranks."""
    from tests.distributed.families import write_family

    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = PEERS.exchange(tmp_path_factory.mktemp(family))[0]
            try:
                if RANK == 0:
                    write_family(made[family], family)
            finally:
                PEERS.exchange(None)
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


def pytest_collectreport(report: pytest.CollectReport) -> None:
    COLLECTION.note(report)


def pytest_collection_finish(session: pytest.Session) -> None:
    for progress in PROGRESS:
        COLLECTION.agree(session)
        progress.folder.write(RANK, "tests", [item.nodeid for item in session.items])
    gc.freeze()  # What is there now stays; the collections after each test need not look at it.


# ---- Agreement on each phase (setup, call, teardown) of each test ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("patience")
    patience = marker.args[0] if marker else 1.0
    for progress in PROGRESS:
        progress.tell(test=item.nodeid, phase="setup", since=time.monotonic(), patience=patience)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    for progress in PROGRESS:
        progress.tell(phase="call")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    for progress in PROGRESS:
        progress.tell(phase="teardown")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    for progress in PROGRESS:
        if report.failed:
            progress.folder.file(RANK, "failure").write_text(report.longreprtext, encoding="utf-8")
        progress.tell(outcome=report.outcome)
        agree_on(report)
        progress.tell(outcome="")
    return report  # type: ignore[return-value]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for progress in PROGRESS:
        if RANK == 0:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = "" if crash is None else crash.message
            progress.note({**report._to_json(), "$report_type": "TestReport", "message": message})


# ---- From the guard to the end; only rank 0 prints ----


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if WORLD_SIZE > 1:
        if RANK:
            config.option.xmlpath = config.option.report_log = None
        PROGRESS.append(Progress(stand_guard(config)))


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    for progress in PROGRESS:
        progress.start()
        progress.tell(phase="collection")
        if RANK and reporter is not None:
            printed = progress.folder.file(RANK, "printed").open("w", buffering=1, encoding="utf-8")
            reporter._tw = create_terminal_writer(session.config, printed)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    for progress in PROGRESS:
        progress.tell(test="", phase="end")
        PEERS.end_world()
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # torchrun takes any other status for a crash.


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    for progress in PROGRESS:
        progress.tell(test="", phase="ended")
