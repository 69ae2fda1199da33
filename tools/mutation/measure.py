"""Which lines every test reaches, measured by coverage.py over all parts of a suite."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coverage import Coverage

from tools.mutation.areas import all_files
from tools.mutation.contexts import CONTEXT, MEASURED
from tools.mutation.copies import make_copy
from tools.mutation.files import read_lines, write_whole
from tools.mutation.launch import launch
from tools.mutation.mutants import text_hash
from tools.mutation.parts import PARTS, Part
from tools.mutation.same import is_same

TEST_SECONDS = 1800.0
"""Longest time for a test while it is measured."""

SETTINGS = """\
[run]
core = ctrace
concurrency = thread
data_file = {data}
parallel = true
context = ${{{context}-}}
patch = _exit
disable_warnings =
    no-data-collected
    trace-changed
    already-imported
include =
{files}
"""
"""A warning in a program's output would be a difference that tests see."""


@dataclass(frozen=True)
class About:
    """What was measured, for those who read it."""

    checkout: str
    copy: str
    """Where it ran; files are known by their paths there."""
    same_as: str | None
    """The measure that stands for test files which are the same there."""
    sources: dict[str, str]
    """Hashes of the files of the areas."""


def measure(
    work: Path,
    name: str,
    checkout: Path,
    parts: Sequence[str],
    *,
    same_as: str | None = None,
    alike: Collection[str] = (),
    again: bool = False,
) -> None:
    """Run the parts that were not measured before, and write down what they reach.

    Args:
        same_as: another measure, of another checkout: test files that are the same in both are not
            run anew.
        alike: files that count as the same, see :func:`tools.mutation.same.is_same`.
        again: measure these parts even where that was done before.
    """
    folder = work / "coverage" / name
    todo = [part for part in PARTS if part.name in parts]
    todo = [part for part in todo if again or not (folder / f"{part.name}.json").exists()]
    if not todo:
        return
    copy = make_copy(work / "copies" / f"measured-{name}", checkout)
    sources = {file: text_hash((copy / file).read_text("utf-8")) for file in all_files(copy)}
    about = About(str(checkout.resolve()), str(copy), same_as, sources)
    write_whole(folder / "about.json", json.dumps(asdict(about), indent=1))
    for part in todo:
        found = sorted(path.relative_to(copy) for path in (copy / part.path).rglob("test_*.py"))
        files = [path.as_posix() for path in found if part.holds(path.as_posix())]
        same = []
        if same_as is not None:
            other = Path(read_about(work / "coverage" / same_as).checkout)
            same = [file for file in files if is_same(checkout, other, file, alike)]
        _measure_part(work, folder, copy, part, [file for file in files if file not in same], same)


def _measure_part(
    work: Path,
    folder: Path,
    copy: Path,
    part: Part,
    files: Sequence[str],
    same: Sequence[str],
) -> None:
    """Run some test files.

    Args:
        same: the part's other files, which another measure stands for.
    """
    sys.stdout.write(f"{folder.name}: {part.name}\n")
    sys.stdout.flush()
    events, data = folder / f"{part.name}.jsonl", folder / f"{part.name}.data"
    for stale in (events, events.with_suffix(".again.jsonl"), folder / f"{part.name}.sqlite"):
        stale.unlink(missing_ok=True)
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    settings = data / "settings.ini"
    measured = "\n".join(f"    {copy / file}" for file in all_files(copy))
    settings.write_text(
        SETTINGS.format(data=data / f"{part.name}.sqlite", context=CONTEXT, files=measured),
        encoding="utf-8",
    )
    if files:
        launched = launch(
            part,
            copy,
            events,
            work=work,
            paths=files,
            limit=lambda _: TEST_SECONDS,
            # A program that is forked with all imports would tell what it did not reach itself.
            environment={MEASURED: str(settings), "LONGRL_TEST_COLD": "1"},
        )
        sys.stdout.write(f"  {launched.seconds:.0f} s, status {launched.status}\n")
        combined = Coverage(data_file=str(folder / f"{part.name}.sqlite"), config_file=False)
        combined.combine([str(data)])
        combined.save()
    summary = {**summarize(read_lines(events)), "same": list(same)}
    _second_chance(work, copy, part, events.with_suffix(".again.jsonl"), summary)
    write_whole(folder / f"{part.name}.json", json.dumps(summary, indent=1))
    shutil.rmtree(data)
    outcomes = [row["outcome"] for row in summary["tests"].values()]
    told = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    sys.stdout.write(f"  {told}\n")
    sys.stdout.flush()


def summarize(events: Sequence[dict]) -> dict[str, Any]:
    """Tests and shared fixtures of a log, with their seconds. A fixture's are not its test's."""
    tests: dict[str, dict] = {}
    fixtures: dict[str, float] = {}
    within = 0.0
    for event in events:
        if event["event"] == "begin":
            within = 0.0
        elif event["event"] == "fixture":
            fixtures[event["name"]] = max(event["seconds"], fixtures.get(event["name"], 0.0))
            within += event["seconds"]
        elif event["event"] == "end":
            tests[event["test"]] = {
                "outcome": event["outcome"],
                "seconds": round(max(event["seconds"] - within, 0.0), 4),
                "fixtures": event["fixtures"],
            }
    return {"tests": tests, "fixtures": fixtures}


def _second_chance(work: Path, copy: Path, part: Part, events: Path, summary: dict) -> None:
    """What fails while it is measured may pass otherwise: then it is as good as the others."""
    failed = [name for name, row in summary["tests"].items() if row["outcome"] == "failed"]
    if not failed:
        return
    launch(part, copy, events, work=work, tests=failed, limit=lambda _: TEST_SECONDS)
    for name, row in summarize(read_lines(events))["tests"].items():
        summary["tests"][name]["outcome"] = row["outcome"]


def read_about(folder: Path) -> About:
    """What a measure is of."""
    return About(**json.loads((folder / "about.json").read_text(encoding="utf-8")))
