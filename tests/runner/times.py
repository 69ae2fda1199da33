"""Where the time of a run goes: a table for docs/testing.md."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.runner.launch import Ended

LONGEST = 20
LAUNCHES = "LONGRL_TEST_LAUNCHES"
"""Environment variable: the file to which tests/functional/launches.py writes each launch."""
IMPORTS = (
    "torch",
    "megatron.core",
    "transformers",
    "vllm",
    "nvidia.dali.fn",
    "megatron_longrl.config",
    "megatron_longrl.train_sft",
    "megatron_longrl.train_rl",
    "megatron_longrl.rl.trainer",
    "megatron_longrl.rollout.vllm.engine",
)
REPEATS = 3
"""Of each import; the median is told."""


def table(ended: Sequence[Ended], seconds: float, launches: Path) -> str:
    """Markdown: seconds per part, per launch of a program, per import, and the longest tests.

    Args:
        launches: the file that ``LONGRL_TEST_LAUNCHES`` names.
    """
    sections = [
        f"{_machine()}: {seconds:.0f} s.",
        _rows(
            ("part", "seconds", "cores busy", "tests"),
            [
                (
                    one.part.name,
                    f"{one.seconds:.0f}",
                    f"{one.cpu_seconds / one.seconds:.1f}",
                    one.results.counts if one.part.log else "",
                )
                for one in ended
            ],
        ),
        f"The {LONGEST} longest tests, with their share of fixtures:",
        _rows(("test", "seconds"), _longest(ended)),
    ]
    rows = _launches(launches)
    if rows:
        total = sum(float(row[1]) for row in rows)
        sections += [
            f"{len(rows)} launches of programs take {total:.0f} s; the {LONGEST} longest:",
            _rows(("launched by", "seconds", "program"), rows[:LONGEST]),
        ]
    sections += ["Imports, each in a process of its own:", _rows(("module", "seconds"), _imports())]
    return "\n\n".join(sections) + "\n"


def _machine() -> str:
    flags = Path("/proc/cpuinfo")
    has = flags.is_file() and "avx512f" in flags.read_text()
    return f"{platform.machine()}, {'AVX-512' if has else 'without AVX-512'}"


def _rows(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _longest(ended: Sequence[Ended]) -> list[tuple[str, ...]]:
    seconds = {name: s for one in ended for name, s in one.results.seconds.items()}
    names = sorted(seconds, key=lambda name: -seconds[name])[:LONGEST]
    return [(f"`{name}`", f"{seconds[name]:.1f}") for name in names]


def _launches(path: Path) -> list[tuple[str, ...]]:
    if not path.is_file():
        return []
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    entries.sort(key=lambda entry: -entry["seconds"])
    return [(f"`{e['test']}`", f"{e['seconds']:.1f}", f"`{e['program']}`") for e in entries]


def _imports() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for module in IMPORTS:
        seconds = []
        for _ in range(REPEATS):
            began = time.monotonic()
            subprocess.run(
                [sys.executable, "-c", f"import {module}"], check=True, capture_output=True
            )
            seconds.append(time.monotonic() - began)
        rows.append((f"`{module}`", f"{sorted(seconds)[REPEATS // 2]:.1f}"))
    return rows
