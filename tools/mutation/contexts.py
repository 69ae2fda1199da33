"""A pytest plugin, ``-p tools.mutation.contexts``: tells coverage.py and a log which test runs.

Where coverage.py measures this process, every line is noted under the node id of the test that
reaches it. What a fixture shared by several tests reaches, at its beginning and at its end, is
noted under the fixture's name, and the log says which tests use it. Programs that a test or a
fixture launches inherit the name in ``LONGRL_MUTATION_CONTEXT``, where coverage.py's settings take
it from.

``LONGRL_MUTATION_EVENTS`` names the log, of JSON lines; of several ranks the first one writes it.
``LONGRL_MUTATION_TESTS`` names a file with a JSON list of node ids: other tests are not run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CONTEXT = "LONGRL_MUTATION_CONTEXT"
EVENTS = "LONGRL_MUTATION_EVENTS"
TESTS = "LONGRL_MUTATION_TESTS"
MEASURED = "COVERAGE_PROCESS_START"
FIXTURE = "fixture:"
"""How the names of fixtures begin."""


# ---- The log ----


def tell(**event: object) -> None:
    """A line of the log, at once."""
    path = os.environ.get(EVENTS)
    if path and os.environ.get("RANK", "0") == "0":
        with open(path, "ab") as file:
            file.write((json.dumps(event) + "\n").encode())


# ---- Names for lines ----


def coverage() -> Any:
    """The measurement of this process, or None."""
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module is not None else None


_NAMES: list[str] = []
"""The test, and the fixtures within that begin or end."""


def enter(name: str) -> None:
    _NAMES.append(name)
    _announce()


def leave() -> None:
    _NAMES.pop()
    _announce()


def _announce() -> None:
    name = _NAMES[-1] if _NAMES else ""
    os.environ[CONTEXT] = name
    if (measurement := coverage()) is not None:
        measurement.switch_context(name)


def pytest_configure() -> None:
    if os.environ.get(MEASURED) and coverage() is None:
        raise pytest.UsageError(
            "coverage.py has not started with this process: its a1_coverage.pth is not in the "
            "environment's site-packages"
        )


def fixture_name(fixture: Any, index: int | None) -> str:
    """A name that no other fixture has; each parameter's value makes one of its own."""
    made_by = fixture.func
    place = f"{getattr(made_by, '__module__', '')}.{getattr(made_by, '__qualname__', '')}"
    return f"{FIXTURE}{place}:{fixture.argname}" + ("" if index is None else f"[{index}]")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Iterator[None]:
    if fixturedef.scope == "function":
        return (yield)
    name = fixture_name(fixturedef, request.param_index if hasattr(request, "param") else None)
    began = time.perf_counter()
    # Finalizers run in reverse order: the fixture's own end lies between these two.
    fixturedef.addfinalizer(leave)
    enter(name)
    try:
        return (yield)
    finally:
        leave()
        fixturedef.addfinalizer(lambda: enter(name))
        tell(event="fixture", name=name, seconds=round(time.perf_counter() - began, 4))


def shared_fixtures(item: Any) -> list[str]:
    """Names of the fixtures of wider scope that a test has used, whoever has asked for them."""
    request = getattr(item, "_request", None)
    indices = getattr(getattr(item, "callspec", None), "indices", {})
    found = getattr(request, "_fixture_defs", {})
    return sorted(
        fixture_name(fixture, indices.get(name))
        for name, fixture in found.items()
        if fixture.scope != "function"
    )


# ---- Tests ----


_OUTCOMES: dict[str, str] = {}
_USED: dict[str, list[str]] = {}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    tell(event="begin", test=item.nodeid)
    began = time.perf_counter()
    enter(item.nodeid)
    try:
        return (yield)
    finally:
        leave()
        tell(
            event="end",
            test=item.nodeid,
            outcome=_OUTCOMES.pop(item.nodeid, "failed"),
            seconds=round(time.perf_counter() - began, 4),
            fixtures=_USED.pop(item.nodeid, []),
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    _USED[item.nodeid] = shared_fixtures(item)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    earlier = _OUTCOMES.get(report.nodeid, "passed")
    if report.failed or earlier == "failed":
        _OUTCOMES[report.nodeid] = "failed"
    elif report.skipped or earlier == "skipped":
        _OUTCOMES[report.nodeid] = "skipped"
    else:
        _OUTCOMES[report.nodeid] = "passed"


# ---- What is run ----


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        tell(event="collection", test=report.nodeid, text=report.longreprtext[-2000:])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = os.environ.get(TESTS)
    if path:
        wanted = set(json.loads(Path(path).read_text(encoding="utf-8")))
        others = [item for item in items if item.nodeid not in wanted]
        items[:] = [item for item in items if item.nodeid in wanted]
        config.hook.pytest_deselected(items=others)
    if config.option.collectonly:
        for item in items:
            tell(event="collected", test=item.nodeid)
