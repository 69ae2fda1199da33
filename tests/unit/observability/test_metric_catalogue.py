"""The catalogue of metrics: whole, unambiguous, and known to those who read metrics."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from megatron_longrl.observability import health_checks as watch
from megatron_longrl.observability import short_line
from megatron_longrl.observability.log_line import PLACED
from megatron_longrl.observability.metric_catalogue import (
    OF_EVALUATION,
    OF_STEPS,
    metric_of_evaluation,
    metric_of_step,
)
from megatron_longrl.observability.plots import HELDOUT, HELDOUT_HIGH, HELDOUT_LOW, _panels

PACKAGE = Path(watch.__file__).parents[1]
ALL = [metric for group in (*OF_STEPS, OF_EVALUATION) for metric in group.metrics]


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/odd", "reward/NAME"),
        ("reward/odd/half", "reward/NAME/NUMBER"),
        ("reward/odd/a/b", "reward/NAME/NUMBER"),
        ("accuracy/kind/how/why", "accuracy/kind/KIND"),
        ("accuracy/frames/17-32", "accuracy/frames/FRAMES"),
        ("valid/accuracy/kind/x", "valid/accuracy/kind/KIND"),
        ("lm loss", "lm loss"),
        ("rollout_corr/median", None),
        ("reward/", None),
        ("xreward/odd", None),
    ],
)
def test_the_entry_of_a_key(key, entry):
    found = metric_of_step(key)
    assert (found.key if found is not None else None) == entry


def test_entries_are_told_once_and_wholly():
    for groups in (OF_STEPS, (OF_EVALUATION,)):
        keys = Counter(metric.key for group in groups for metric in group.metrics)
        assert [key for key, count in keys.items() if count > 1] == []
    for metric in ALL:
        assert metric.meaning and metric.over and metric.range and metric.when and metric.programs
        texts = (metric.meaning, metric.over, metric.range, metric.when, metric.healthy)
        assert not [text for text in texts if text.endswith(".")], metric.key


def test_what_reads_metrics_asks_for_keys_that_there_are():
    """The lines, the curves and the warnings."""
    read = {*short_line.FIGURES, *short_line.COUNTS, *PLACED, HELDOUT, HELDOUT_LOW, HELDOUT_HIGH}
    read |= {key for panel in _panels([], None) for key in panel.keys}
    source = Path(watch.__file__).read_text(encoding="utf-8")
    warned = set(re.findall(r"\"([a-z_]+/mean)\"|\{([a-z_]+/mean)", source))
    read |= {a or b for a, b in warned}
    assert len(warned) >= 6
    assert {key for key in read if metric_of_step(key) is None} == set()


def test_every_phase_is_told():
    """``timer("NAME")`` anywhere but in the benchmark, which has a report of its own."""
    phases = set()
    for path in PACKAGE.rglob("*.py"):
        if (PACKAGE / "benchmark") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(id="timer") | ast.Attribute(attr="timer"),
                    args=[ast.Constant(value=str(phase))],
                ):
                    phases.add(f"time/{phase}")
    assert phases == {metric.key for metric in ALL if metric.key.startswith("time/")}


def test_evaluations_figures_are_not_those_of_steps():
    assert metric_of_evaluation("chance_accuracy") is not None
    assert metric_of_step("chance_accuracy") is None
