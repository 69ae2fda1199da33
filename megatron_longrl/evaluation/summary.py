"""The summary of an evaluation: accuracy with its interval, whole and by category, beside what
guessing gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_longrl.evaluation.benchmark import BENCHMARK, CATEGORIES, Benchmark
from megatron_longrl.evaluation.intervals import wilson_interval


def summarize(
    answers: Sequence[Mapping[str, Any]], benchmark: tuple[str, Benchmark] | None = None
) -> dict[str, Any]:
    """The figures of answered questions.

    Args:
        answers: records, see :mod:`megatron_longrl.evaluation.records`; at least one. Those without
            a score count as wrong.
        benchmark: name and object, where all rows are of one.

    Returns:
        ``accuracy`` (0 to 1) is by this package's rule, ``benchmark_accuracy`` by the benchmark's;
        both with 95 % intervals (Wilson). ``chance_accuracy`` is that of guessing among the options
        of each question (questions without options count as 0), ``majority_accuracy`` that of
        always giving the most frequent reference. ``by_category`` has all of these for each value
        of each kind of category.
    """
    rewards = [record["reward"] for record in answers if record["reward"] is not None]
    lengths = [record["tokens"] for record in answers if "tokens" in record]
    kinds = dict(_parts(answers, lambda record: {"": record["problem_type"]}))
    unscored = [
        {"problem_id": record["problem_id"], "reason": record["unscored"]}
        for record in answers
        if "unscored" in record
    ]
    summary = {
        **_figures(answers, benchmark),
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "format": sum(record["format"] for record in answers) / len(answers),
        "well_formed": sum(record["well_formed"] for record in answers) / len(answers),
        "response_length": sum(lengths) / len(lengths) if lengths else None,
        "by_problem_type": {kind: _accuracy(found) for (_, kind), found in sorted(kinds.items())},
        "unscored": len(unscored),
        "unscored_rows": unscored,
    }
    parts = dict(_parts(answers, lambda record: record.get(CATEGORIES, {})))
    if parts:
        by_category: dict[str, dict[str, Any]] = {}
        for (category, value), found in parts.items():
            by_category.setdefault(category, {})[value] = _figures(found, benchmark)
        summary["by_category"] = {
            category: dict(sorted(values.items())) for category, values in by_category.items()
        }
    if benchmark is not None:
        summary[BENCHMARK] = benchmark[0]
        summary["rule"] = benchmark[1].rule
    return summary


def _figures(
    answers: Sequence[Mapping[str, Any]], benchmark: tuple[str, Benchmark] | None
) -> dict[str, Any]:
    accuracy = _accuracy(answers)
    low, high = wilson_interval(accuracy, len(answers))
    references = Counter(record["answer"] for record in answers)
    figures: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "samples": len(answers),
        "chance_accuracy": sum(record["chance"] for record in answers) / len(answers),
        "majority_accuracy": max(references.values()) / len(answers),
    }
    if benchmark is not None:
        scored = [(record, record["benchmark_correct"]) for record in answers]
        figures["benchmark_accuracy"] = benchmark[1].total(scored)
    return figures


def _accuracy(answers: Sequence[Mapping[str, Any]]) -> float:
    rate: float = sum(record["correct"] for record in answers) / len(answers)
    return rate


def _parts(
    answers: Sequence[Mapping[str, Any]], values_of: Any
) -> Iterator[tuple[tuple[str, str], list[Mapping[str, Any]]]]:
    """The answers by kind of category and value; one that has several values is in all of them."""
    parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in answers:
        for category, values in values_of(record).items():
            for value in values if isinstance(values, list) else [values]:
                parts.setdefault((category, str(value)), []).append(record)
    yield from parts.items()
