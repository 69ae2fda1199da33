"""The result of an evaluation as small tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_longrl.errors import printable

_MOST_REASONS = 5
"""Rows without a score that are named; the JSON has all."""

_PERCENT = "{:6.1%}".format


def evaluation_table(summary: Mapping[str, Any]) -> str:
    """A line for every figure of :func:`~megatron_longrl.evaluation.summary.summarize`."""
    rows = [("accuracy", _with_interval(summary))]
    if "benchmark_accuracy" in summary:
        rule = f"   {summary['benchmark']}: {summary['rule'].replace('`', '')}"
        rows.append(("benchmark accuracy", _PERCENT(summary["benchmark_accuracy"]) + rule))
    rows += _categories(summary)
    rows.append(("chance", f"{_PERCENT(summary['chance_accuracy'])}   a guess among the options"))
    majority = f"{_PERCENT(summary['majority_accuracy'])}   always the most frequent answer"
    rows += [("majority", majority), ("format", _PERCENT(summary["format"]))]
    rows.append(("well formed", f"{_PERCENT(summary['well_formed'])}   an answer can be read"))
    if summary["reward"] is not None:
        rows.append(("reward", f"{summary['reward']:6.3f}"))
    if summary["response_length"] is not None:
        rows.append(("response length", f"{summary['response_length']:6.1f}   tokens"))
    skipped = summary.get("samples_skipped")
    more = "" if skipped is None else f"   skipped: {skipped:.0f}"
    rows.append(("samples", f"{summary['samples']:6d}{more}"))
    rows += _without_score(summary)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def sweep_table(
    ways: Sequence[tuple[str, str]],
    summaries: Sequence[Mapping[str, Any]],
    encoding: Mapping[str, Any],
) -> str:
    """A line for every way to ask.

    Args:
        ways: frames and mode of each.
        encoding: the numbers of encoded units, see
            :func:`~megatron_longrl.evaluation.report.report`.
    """
    lines = [f"{'frames':>6}  {'':9}  accuracy"]
    for (frames, mode), summary in zip(ways, summaries, strict=True):
        text = _with_interval(summary)
        if "benchmark_accuracy" in summary:
            text += f"   benchmark {summary['benchmark_accuracy']:.1%}"
        lines.append(f"{frames:>6}  {mode:9}  {text}")
    of = ", ".join(
        f"{encoding['encoded'].get(kind, 0)} {kind} of {count} that were asked for"
        for kind, count in encoding["asked"].items()
    )
    lines.append(f"encoded once for all of these: {of or 'nothing'}")
    return "\n".join(lines)


def _with_interval(summary: Mapping[str, Any]) -> str:
    return (
        f"{_PERCENT(summary['accuracy'])}   95 % interval {summary['accuracy_low']:.1%} to "
        f"{summary['accuracy_high']:.1%}"
    )


def _categories(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The kinds of questions, where there are several; of a benchmark with intervals."""
    kinds = summary["by_problem_type"]
    if "by_category" not in summary:
        if len(kinds) < 2:
            return []
        return [(f"  {printable(kind)}", _PERCENT(rate)) for kind, rate in kinds.items()]
    rows = []
    for category, values in summary["by_category"].items():
        if len(values) < 2:
            continue
        rows.append((f"  {printable(category)}", ""))
        rows += [
            (
                f"    {printable(value)}",
                f"{_with_interval(found)}   of {found['samples']}; chance "
                f"{found['chance_accuracy']:.1%}, majority {found['majority_accuracy']:.1%}",
            )
            for value, found in values.items()
        ]
    return rows


def _without_score(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = summary.get("unscored_rows", [])
    if not rows:
        return []
    lines = [("unscored", f"{len(rows):6d}   counted as wrong")]
    lines += [
        (f"  {printable(str(row['problem_id']))}", printable(row["reason"]))
        for row in rows[:_MOST_REASONS]
    ]
    if len(rows) > _MOST_REASONS:
        lines.append(("  …", f"and {len(rows) - _MOST_REASONS} more"))
    return lines
