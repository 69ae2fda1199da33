"""What the runs have shown, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.mutation.files import read_lines
from tools.mutation.mutants import Mutant

Results = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of ``results.jsonl`` by mutant and suite."""


def read_results(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last result of every mutant under every suite."""
    return {(row["mutant"], row["suite"]): row for row in read_lines(path)}


def report(mutants: Sequence[Mutant], results: Results, against: str = "old") -> str:
    """Counts by area, who misses what, and what survives everything.

    Args:
        against: the suite that the others are measured by.
    """
    suites = list(dict.fromkeys(suite for _, suite in results))
    lines = ["# Power of the suites", "", *_counts(mutants, results, suites)]
    lines += ["", *_ratios(mutants, results, suites, against)]
    for suite in suites:
        lines += _missed(mutants, results, suites, suite)
    lines += _survivors(mutants, results, suites)
    return "\n".join(lines) + "\n"


def _is_caught(results: Results, mutant: Mutant, suite: str) -> bool:
    return results.get((mutant.id, suite), {}).get("outcome") == "caught"


def _has_all(results: Results, mutant: Mutant, suites: Sequence[str]) -> bool:
    return all((mutant.id, suite) in results for suite in suites)


def _counts(mutants: Sequence[Mutant], results: Results, suites: Sequence[str]) -> list[str]:
    lines = [f"| area | {' | '.join(suites)} |", "|---" * (len(suites) + 1) + "|"]
    areas = list(dict.fromkeys(mutant.area for mutant in mutants))
    for area in [*areas, "all"]:
        mine = [mutant for mutant in mutants if area in (mutant.area, "all")]
        cells = []
        for suite in suites:
            known = [mutant for mutant in mine if (mutant.id, suite) in results]
            caught = sum(_is_caught(results, mutant, suite) for mutant in known)
            cells.append(f"{caught} of {len(known)}")
        lines.append(f"| {area} | {' | '.join(cells)} |")
    return lines


def _ratios(
    mutants: Sequence[Mutant], results: Results, suites: Sequence[str], against: str
) -> list[str]:
    """Over the mutants that every suite has met."""
    met = [mutant for mutant in mutants if _has_all(results, mutant, suites)]
    lines = [f"All suites have met {len(met)} of {len(mutants)} mutants."]
    base = [mutant for mutant in met if _is_caught(results, mutant, against)]
    for suite in suites:
        if suite == against or not base:
            continue
        caught = sum(_is_caught(results, mutant, suite) for mutant in met)
        kept = sum(_is_caught(results, mutant, suite) for mutant in base)
        lines += [
            f"`{suite}` catches {caught}, `{against}` {len(base)}: {caught / len(base):.1%}. "
            f"Of those that `{against}` catches, `{suite}` catches {kept}."
        ]
    inferred = sum(bool(row["inferred"]) for row in results.values())
    seconds = sum(row["seconds"] for row in results.values())
    lines.append(
        f"{len(results)} results, {inferred} of them inferred from another suite's runs; "
        f"{seconds / 3600:.1f} hours of runs."
    )
    return lines


def _missed(
    mutants: Sequence[Mutant], results: Results, suites: Sequence[str], suite: str
) -> list[str]:
    """What a suite does not catch and another one does."""
    others = [other for other in suites if other != suite]
    lines: list[str] = []
    for mutant in mutants:
        if (mutant.id, suite) not in results or _is_caught(results, mutant, suite):
            continue
        catching = [other for other in others if _is_caught(results, mutant, other)]
        if catching:
            by = [f"`{other}` by `{results[mutant.id, other]['test']}`" for other in catching]
            lines += [*_told(mutant), f"Caught by {', '.join(by)}.", ""]
    return ["", f"## Missed by `{suite}`, caught by others", "", *(lines or ["None."])]


def _survivors(mutants: Sequence[Mutant], results: Results, suites: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for mutant in mutants:
        if not _has_all(results, mutant, suites):
            continue
        if not any(_is_caught(results, mutant, suite) for suite in suites):
            reached = max(results[mutant.id, suite]["tests"] for suite in suites)
            lines += [*_told(mutant), f"{reached} tests reach it." if reached else "No test.", ""]
    return ["", "## Caught by none", "", *(lines or ["None."])]


def _told(mutant: Mutant) -> list[str]:
    operator = mutant.operator.partition("/")[2]
    return [
        *(f"### {mutant.id}", ""),
        *(f"`{mutant.file}:{mutant.lines[0]}`, {operator}", ""),
        *("```diff", mutant.diff.rstrip("\n"), "```", ""),
    ]
