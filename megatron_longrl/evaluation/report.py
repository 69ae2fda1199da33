"""The report of an evaluation: a table, a JSON file and a plot."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.evaluation.answers import Answers, EncodingCounts
from megatron_longrl.evaluation.asking import Asking
from megatron_longrl.evaluation.benchmark import BENCHMARK, Benchmark, find_benchmark
from megatron_longrl.evaluation.records import record_of, unanswered
from megatron_longrl.evaluation.summary import summarize
from megatron_longrl.evaluation.table import evaluation_table, sweep_table
from megatron_longrl.observability.frames_plot import plot_frames
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.training.runtime import Runtime


@dataclass(frozen=True)
class Result:
    """The findings of an evaluation, on one rank."""

    ways: Sequence[Asking]
    answers: Sequence[Answers]
    """The answers of each way."""
    rows: Sequence[Row]
    """All rows that were asked, of all replicas."""
    counts: EncodingCounts
    counters: Mapping[str, float]
    left_out: int
    """Rows that were left out from the start."""


def report(runtime: Runtime, result: Result) -> None:
    """Gather all replicas' answers; the writing rank prints and writes. Collective over the
    world."""
    records = [_gathered(runtime, answers) for answers in result.answers]
    encoding = _encoding(runtime, result.counts)
    skipped = runtime.media_metrics(None)["samples_skipped"] + result.left_out
    with raise_on_all_ranks(runtime.groups.gloo_group):
        if not any(answers.groups for answers in result.answers) and not any(
            "tokens" in record for found in records for record in found
        ):
            reasons = [record["unscored"] for found in records for record in found]
            raise UserError(f"no row could be answered; the first: {(reasons or ['none'])[0]}")
        if runtime.is_writer:
            benchmark = benchmark_of_rows(result.rows)
            summaries = [summarize(found, benchmark) for found in records]
            extra = {"samples_skipped": skipped, **result.counters}
            whole = whole_summary(result.ways, summaries, encoding, extra)
            _print(whole, summaries, result.ways)
            _write(runtime.config.evaluation, whole, result.ways, records)


def whole_summary(
    ways: Sequence[Asking],
    summaries: Sequence[Mapping[str, Any]],
    encoding: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary of all ways: at its top the figures of the one with most frames, with reasoning
    where both were asked for."""
    best = max(
        range(len(ways)), key=lambda k: (ways[k].frames or 0, ways[k].mode == "reasoning", -k)
    )
    whole = {**summaries[best], **extra}
    by_frames: dict[str, dict[str, float]] = {}
    for way, summary in zip(ways, summaries, strict=True):
        by_frames.setdefault(str(way.frames or "all"), {})[way.mode] = summary["accuracy"]
    whole["by_frames"] = by_frames
    whole["encoding"] = dict(encoding)
    if len(ways) > 1:
        whole["ways"] = [
            {"frames": way.frames, "mode": way.mode, **summary}
            for way, summary in zip(ways, summaries, strict=True)
        ]
    return whole


def benchmark_of_rows(rows: Sequence[Row]) -> tuple[str, Benchmark] | None:
    """The name and object of the benchmark that all rows are of; None where they are of none, or of
    several."""
    names = {row.metadata.get(BENCHMARK) for row in rows}
    if len(names) != 1 or None in names:
        return None
    name = str(names.pop())
    return name, find_benchmark(name)


def _gathered(runtime: Runtime, answers: Answers) -> list[dict[str, Any]]:
    """The records of all replicas, those without an answer last; collective over the world."""
    mine: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    if runtime.replica_rank == 0:
        mine = (
            [record_of(group) for group in answers.groups],
            [unanswered(row, reason) for row, reason in answers.unanswered],
        )
    parts = gather_objects(runtime.groups.gloo_group, mine)
    return [record for kind in (0, 1) for part in parts for record in part[kind]]


def _encoding(runtime: Runtime, counts: EncodingCounts) -> dict[str, Any]:
    """Counts of what was loaded and encoded, over all ranks; collective over the world."""
    mine = (counts.loaded, counts.media, counts.asked)
    if runtime.replica_rank != 0:  # The ranks of a replica know the same prompts.
        mine = (counts.loaded, 0, Counter[str]())
    parts = gather_objects(runtime.groups.gloo_group, mine)
    loaded = sum((part[0] for part in parts), Counter[str]())
    asked = sum((part[2] for part in parts), Counter[str]())
    return {
        "media": sum(part[1] for part in parts),
        "encoded": dict(loaded),
        "asked": dict(asked),
    }


def _print(
    whole: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]], ways: Sequence[Asking]
) -> None:
    text = evaluation_table(whole)
    if len(ways) > 1:
        names = [(str(way.frames or "all"), way.mode) for way in ways]
        text = f"{sweep_table(names, summaries, whole['encoding'])}\n\n{text}"
    sys.stdout.write(text + "\n")


def _write(
    section: EvaluationSection,
    whole: Mapping[str, Any],
    ways: Sequence[Asking],
    records: Sequence[Sequence[Mapping[str, Any]]],
) -> None:
    plot = section.plot
    if section.output is not None:
        several = len(ways) > 1
        answers = [
            {**record, **({"frames": way.frames, "mode": way.mode} if several else {})}
            for way, found in zip(ways, records, strict=True)
            for record in found
        ]
        content = json.dumps({**whole, "answers": answers}, indent=1)
        atomic_write_text(Path(section.output), content)
        if plot is None and len({way.frames for way in ways}) > 1:
            plot = str(Path(section.output).with_suffix(".png"))
    if plot is not None:
        found = whole.get("ways") or [{"frames": ways[0].frames, "mode": ways[0].mode, **whole}]
        plot_frames(found, plot)
