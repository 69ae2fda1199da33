"""The line of a step for people."""

from __future__ import annotations

import math

import pytest

from megatron_longrl.observability.short_line import ShortLine, duration


def test_a_step_of_rl() -> None:
    line = ShortLine(200)
    metrics = {
        "lm loss": 0.5,
        "reward/mean": 0.25,
        "accuracy/mean": 0.125,
        "kl/mean": math.nan,
        "grad-norm": 1.25,
        "learning-rate": 1e-6,
        "samples_skipped": 2,
        "skipped_updates": 0,
        "iteration-time": 30.0,
    }
    assert line.line(20, metrics) == (
        "step  20/200  reward 0.250  accuracy 0.125  grad norm 1.25  lr 1.00e-06  "
        "skipped samples 2  30 s  ETA 1h30m"
    )
    assert line.line(21, {"iteration-time": 10.0}).endswith("10 s  ETA 59m40s"), "a mean of both"


def test_nothing_is_not_negative() -> None:
    assert ShortLine(5).line(1, {"kl/mean": -1e-8}) == "step 1/5  KL 0.0000"


def test_a_step_of_sft_and_the_last() -> None:
    line = ShortLine(5)
    assert line.line(0, {"valid/lm loss": 2.0}) == "step 0/5  valid loss 2.0000"
    assert line.line(5, {"lm loss": 1.5, "iteration-time": 0.2}) == "step 5/5  loss 1.5000  0.2 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (200, "3m20s"), (7500, "2h05m"), (100800, "1d04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
