"""Segments of a video."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.rewards.sample import RewardError
from megatron_longrl.rewards.temporal import segments, temporal_iou_reward


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from 12.5 to 20 s", [(12.5, 20)]),
        ("[12.5, 20]", [(12.5, 20)]),
        ("00:12-00:20", [(12, 20)]),
        ("00:12 \N{EN DASH} 00:20.5", [(12, 20.5)]),
        ("1:00:00 to 1:00:05", [(3600, 3605)]),
        ("between 3 s and 7 seconds", [(3, 7)]),
        ("12.5s-20s", [(12.5, 20)]),
        ("3 until 7 sec", [(3, 7)]),
        ("[[1, 2], [5, 8]]", [(1, 2), (5, 8)]),
        ("1-2, 5-8", [(1, 2), (5, 8)]),
        ("5-8 and 1-2 and 7-9", [(1, 2), (5, 9)]),
        ("8 to 5", []),
        ("5 to 5", []),
        ("at 5 s", []),
        ("", []),
        ("never", []),
        ("9" * 400 + " to " + "9" * 401, []),
    ],
)
def test_segments(text: str, found: list[tuple[float, float]]) -> None:
    assert segments(text) == found


@pytest.mark.parametrize(
    ("given", "answer", "iou"),
    [
        ("10-20", "10-20", 1.0),
        ("from 0:10 to 0:20", "[10.0, 20.0]", 1.0),
        ("10-20", "15-25", 5 / 15),
        ("10-20", "20-30", 0.0),
        ("10-20", "30-40", 0.0),
        ("0-1000", "10-20", 0.01),
        ("10-20, 30-40", "10-40", 20 / 30),
        ("10-15, 12-20", "10-20", 1.0),
        ("no idea", "10-20", 0.0),
    ],
)
def test_iou(given: str, answer: str, iou: float) -> None:
    assert temporal_iou_reward(f"<answer>{given}</answer>", answer) == pytest.approx(iou)


def test_without_an_answer() -> None:
    assert temporal_iou_reward("10-20", "10-20") == 0.0


@pytest.mark.parametrize("answer", ["B", "20-10", ""])
def test_a_reference_without_a_segment(answer: str) -> None:
    with pytest.raises(RewardError, match="has no segment"):
        temporal_iou_reward("<answer>1-2</answer>", answer)


@pytest.mark.parametrize("piece", ["9", "1:", "1.", "1 ", "1-", " ", "1s", "1 to "])
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    segments(piece * 50_000)
    assert time.process_time() - began < 2
