"""The list of tests that only ``--full`` runs, each with its guard in the first tier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.runner.parts import ROOT
from tests.runner.tiers import COLLECTED

PAGE = ROOT / "docs" / "testing.md"
BEGIN = "<!-- begin: bash tests/run.sh --list -->"
END = "<!-- end -->"


def collected() -> dict[str, str | None]:
    """The guard of every test by node id; None for tests of the first tier."""
    guards: dict[str, str | None] = {}
    # One process per folder, at once: a process that imports everything would take twice as long.
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-qq",
            "-p",
            "no:cacheprovider",
        ]
        processes = [
            subprocess.Popen(
                [*command, f"tests/{part}"],
                cwd=ROOT,
                env=os.environ | {COLLECTED: folder},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for part in ("unit", "cases", "distributed", "functional", "parity")
        ]
        for process in processes:
            said, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"the tests cannot be collected:\n{said}")
        for path in Path(folder).glob("*.json"):
            guards |= json.loads(path.read_text(encoding="utf-8"))
    return guards


def listing(guards: dict[str, str | None]) -> str:
    """A table in Markdown: function, how many of its cases are in each tier, its guards."""
    functions = {name.partition("[")[0] for name, guard in guards.items() if guard}
    full: Counter[str] = Counter()
    first: Counter[str] = Counter()
    by: dict[str, set[str]] = {}
    for name, guard in guards.items():
        function = name.partition("[")[0]
        if guard:
            full[function] += 1
            by.setdefault(function, set()).add(guard)
        elif function in functions:
            first[function] += 1
    lines = ["| only in the full tier | cases | of it in the first tier | guarded by |"]
    lines.append("|---|---|---|---|")
    for function in sorted(functions):
        # A guard that is the function itself says that other cases of it are in the first tier.
        names = ["itself" if g.partition("[")[0] == function else f"`{g}`" for g in by[function]]
        told = ", ".join(sorted(set(names)))
        lines.append(f"| `{function}` | {full[function]} | {first[function]} | {told} |")
    return "\n".join(lines)


def problems(guards: dict[str, str | None]) -> list[str]:
    """Guards that do not run in the first tier, and a page of the docs that tells another list."""
    first = {name for name, guard in guards.items() if guard is None}
    first |= {name.partition("[")[0] for name in first}
    found = [
        f"{name}: its guard {guard} is not in the first tier"
        for name, guard in guards.items()
        if guard and guard not in first
    ]
    if listing(guards) not in PAGE.read_text(encoding="utf-8"):
        found.append(
            f"{PAGE.relative_to(ROOT)} has another list: bash tests/run.sh --list writes it"
        )
    return found


def write_page(guards: dict[str, str | None]) -> None:
    """Put the list into the page of the docs."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{listing(guards)}\n{END}{after}", encoding="utf-8")
