"""Segments of a video."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.rewards.result import RewardError
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
        ('{"start": 12, "end": 20}', [(12, 20)]),
        ('[{"start": 12, "end": 20}, {"start": 30, "end": 40}]', [(12, 20), (30, 40)]),
        ('{"end": 20, "start": 12}', [(12, 20)]),
        ("{'start': 12.5, 'end': 20}", [(12.5, 20)]),
        ('```json\n{"start_time": "00:12", "end_time": "00:20"}\n```', [(12, 20)]),
        ('{"start": "12s", "end": "20s"}', [(12, 20)]),
        ('{"segments": [[12, 20], [30, 40]]}', [(12, 20), (30, 40)]),
        ('{"start_sec": 12, "end_sec": 20}', [(12, 20)]),
        ('{"from": 12, "to": 20}', [(12, 20)]),
        ('{"begin": 12, "end": 20}', [(12, 20)]),
        ('{"t_start": 12, "t_end": 20}', [(12, 20)]),
        ("12 → 20", [(12, 20)]),
        ("12 -> 20", [(12, 20)]),
        ("12 -- 20", [(12, 20)]),
        ("12 --> 20", [(12, 20)]),
        ("12 => 20", [(12, 20)]),
        ("12s → 20s", [(12, 20)]),
        ("12 ⇒ 20", [(12, 20)]),
        ("12 — 20", [(12, 20)]),
        ("12 ~ 20", [(12, 20)]),
        ("12～20秒", [(12, 20)]),
        ("1m5s - 1m10s", [(65, 70)]),
        ("1:05 - 1:10", [(65, 70)]),
        ("01:02:03 - 01:02:10", [(3723, 3730)]),
        ("01:02:03 --> 01:02:10", [(3723, 3730)]),
        ("1 min 5 s to 1 min 10 s", [(65, 70)]),
        ("1 minute 5 seconds to 1 minute 10 seconds", [(65, 70)]),
        ("1 minute and 5 seconds to 1 minute and 10 seconds", [(65, 70)]),
        ("1h2m3s - 1h2m10s", [(3723, 3730)]),
        ("1m 5s–1m 10s", [(65, 70)]),
        ("1-2 min", [(60, 120)]),
        ("from 1 to 2 minutes", [(60, 120)]),
        ("1 min - 2 min", [(60, 120)]),
        ("1.5 min to 2 min", [(90, 120)]),
        ("00:00:12,500 --> 00:00:20,000", [(12.5, 20)]),
        ("from 12 s to 20 s", [(12, 20)]),
        ("from 12 seconds to 20 seconds", [(12, 20)]),
        ("Start: 12s, End: 20s", [(12, 20)]),
        ("starts at 12 s and ends at 20 s", [(12, 20)]),
        ("start time: 12\nend time: 20", [(12, 20)]),
        ("start=12, end=20", [(12, 20)]),
        ("It begins at 0:12 and stops at 0:20.", [(12, 20)]),
        ("from second 12 to second 20", [(12, 20)]),
        ("t=12 to t=20", [(12, 20)]),
        (r"\boxed{[12, 20]}", [(12, 20)]),
        ("**12 - 20**", [(12, 20)]),
        ("(12, 20)", [(12, 20)]),
        ("12 to 20 seconds", [(12, 20)]),
        (r"12 \rightarrow 20", [(12, 20)]),
        ("12..20", [(12, 20)]),
        ("12 s–20 s; 30 s–40 s", [(12, 20), (30, 40)]),
        ("from 12s until 1m10s", [(12, 70)]),
        ("[12; 20]", [(12, 20)]),
        ("from 0:12 to 0:20 (8 seconds)", [(12, 20)]),
        ("between 12 and 20 seconds", [(12, 20)]),
        ("12 through 20", [(12, 20)]),
        ("<12> to <20>", []),
        ("1:05", []),
        ("(1:05, 1:10)", [(65, 70)]),
        ("从12秒到20秒", [(12, 20)]),
        ("12s to 20s and from 30s to 40s", [(12, 20), (30, 40)]),
        ('{"start": "1:05", "end": "1:10"}', [(65, 70)]),
        ("12-20s, 30-40s", [(12, 20), (30, 40)]),
        ('{"start": 12, "end": 20}, 30-40', [(12, 20), (30, 40)]),
        ("[00:01:05, 00:01:10]", [(65, 70)]),
        ("5 min to 10 min", [(300, 600)]),
        ('"12" - "20"', [(12, 20)]),
        ("(12) -> (20)", [(12, 20)]),
        ("The action lasts from 12.0s to 20.0s.", [(12, 20)]),
        ("12 sec. to 20 sec.", [(12, 20)]),
        ("1m05s-1m10s", [(65, 70)]),
        ("1'05\" - 1'10\"", [(65, 70)]),
        ("12.5秒到1分5秒", [(12.5, 65)]),
        ("The man starts running at 12 s", []),
        ("starting from 12s, ending at 20s", [(12, 20)]),
        ("start_frame: 5, end_frame: 10", []),
        ("from 10% to 20%", []),
        ("2020-01-05", []),
        ("0.5 - 1.5 hours", [(1800, 5400)]),
        ("Segment 1: 12-20; Segment 2: 30-40", [(12, 20), (30, 40)]),
        ("1. 12-20\n2. 30-40", [(12, 20), (30, 40)]),
        ("12.0-20.0 s (0:12-0:20)", [(12, 20)]),
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
        ("10-20 or 30-40", "10-20", 0.0),
    ],
)
def test_iou(given: str, answer: str, iou: float) -> None:
    assert temporal_iou_reward(f"<answer>{given}</answer>", answer) == pytest.approx(iou)


def test_without_an_element() -> None:
    assert temporal_iou_reward("10-20", "10-20") == 1.0
    assert temporal_iou_reward(r"\boxed{10-20}", "10-20") == 1.0


@pytest.mark.parametrize("answer", ["B", "20-10", ""])
def test_a_reference_without_a_segment(answer: str) -> None:
    with pytest.raises(RewardError, match="has no segment"):
        temporal_iou_reward("<answer>1-2</answer>", answer)


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "9",
            "1:",
            "1.",
            "1 ",
            "1-",
            " ",
            "1s",
            "1 to ",
            "start ",
            "start 1 ",
            "from 1 to ",
            "a_",
        ),
        *("1m", "1h", "1m and ", "-", "the ", "t=", "1 - the ", "~", "_", "[", "1 min 1 ", "1'"),
    ],
)
def test_a_response_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    segments(piece * 50_000)
    assert time.process_time() - began < 2
