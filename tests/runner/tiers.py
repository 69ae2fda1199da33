"""The two tiers of the tests: what always runs, and what only ``--full`` runs.

A pytest plugin, which tests/conftest.py loads. A test that repeats, over more layouts, families or
kinds of rows, what a cheaper test guards already carries the marker

    @pytest.mark.full("tests/unit/x/test_y.py::test_z")        and, for some parameters only,
    pytest.param(..., marks=pytest.mark.full("tests/unit/x/test_y.py::test_z"))

which names that cheaper test. ``-m "not full"`` leaves these tests out; ``--full-slice K/N`` runs
every N-th of them, beside all others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

FULL = "full"
COLLECTED = "LONGRL_TEST_COLLECTED"
"""Environment variable: a folder for :func:`write_collected`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--full-slice``."""
    parser.addoption(
        "--full-slice",
        metavar="K/N",
        help="of the tests that are marked full, run only slice K of N (1 to N)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "full(guard): runs with --full only; the test `guard` guards the same property"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the markers, and leave out the full tests of other slices."""
    for item in items:
        check_guard(item, guard_of(item))
    wanted = config.getoption("--full-slice")
    if wanted:
        number, of = parse_slice(wanted)
        chosen = slice_of([item.nodeid for item in items if guard_of(item)], number, of)
        out = [item for item in items if guard_of(item) and item.nodeid not in chosen]
        if out:
            items[:] = [item for item in items if not guard_of(item) or item.nodeid in chosen]
            config.hook.pytest_deselected(items=out)


def full_only(guard: str, values: Iterable[Any], first: Container[Any] = ()) -> list[Any]:
    """Parameters of a test, of which those that are not in ``first`` run with ``--full`` only.

    Args:
        values: parameters, or ``pytest.param`` with an id.
    """
    marker = pytest.mark.full(guard)
    cases = []
    for value in values:
        is_set = isinstance(value, ParameterSet)
        arguments, identity = (value.values, value.id) if is_set else ((value,), None)
        key = identity if is_set else value
        marks = () if key in first else (marker,)
        cases.append(pytest.param(*arguments, id=identity, marks=marks))
    return cases


def guard_of(item: pytest.Item) -> str | None:
    """The test that guards the same property in the first tier; None for tests of the first tier.

    Where a test and one of its parameters are both marked, the parameter's word counts.
    """
    marker = item.get_closest_marker(FULL)
    if marker is None:
        return None
    if len(marker.args) != 1 or not isinstance(marker.args[0], str) or marker.kwargs:
        raise pytest.UsageError(
            f"{item.nodeid}: the marker full takes the test that guards the same property, "
            'as in @pytest.mark.full("tests/unit/x/test_y.py::test_z")'
        )
    return marker.args[0]


def check_guard(item: pytest.Item, guard: str | None) -> None:
    """Fail where the guard of a test is no test of this project.

    Raises:
        pytest.UsageError: the file does not exist, or has no such function.
    """
    if guard is None:
        return
    path, _, function = guard.partition("::")
    file = item.config.rootpath / path
    name = function.partition("[")[0]
    if not name or not file.is_file() or f"def {name}(" not in file.read_text(encoding="utf-8"):
        raise pytest.UsageError(f"{item.nodeid}: its guard {guard} does not exist")


def parse_slice(text: str) -> tuple[int, int]:
    """``"3/12"`` as (3, 12).

    Raises:
        pytest.UsageError: for anything else.
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise pytest.UsageError(f"--full-slice {text}: not K/N with K from 1 to N")
    return int(number), int(of)


def slice_of(node_ids: Sequence[str], number: int, of: int) -> set[str]:
    """The node ids of one slice. All slices together have every test once.

    Functional tests of a file share launches and stay together; others are dealt in turn.
    """
    keys: dict[str, list[str]] = {}
    for node_id in sorted(node_ids):
        path = node_id.partition("::")[0]
        keys.setdefault(path if path.startswith("tests/functional/") else node_id, []).append(
            node_id
        )
    chosen = list(keys.values())[number - 1 :: of]
    return {node_id for together in chosen for node_id in together}


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Write what was collected, for tests/runner/listing.py."""
    folder = os.environ.get(COLLECTED)
    if folder and os.environ.get("RANK", "0") == "0":
        write_collected(Path(folder), session.items)


def write_collected(folder: Path, items: Sequence[pytest.Item]) -> None:
    """A JSON file that maps the node id of every test to its guard, or to null."""
    guards = {item.nodeid: guard_of(item) for item in items}
    (folder / f"{os.getpid()}.json").write_text(json.dumps(guards), encoding="utf-8")
