"""Rows of one video stay together: on one replica, and in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.answers import by_video, in_batches


def row(number: int, video: str | None) -> Row:
    videos = () if video is None else (Path(video),)
    return Row(str(number), "q", "A", "", videos, "general", "video", f"rows.jsonl:{number}")


ROWS = [row(k, name) for k, name in enumerate(["a", "b", "a", None, "c", "b", None, "a", "d"])]


def names(rows: list[Row]) -> list[str]:
    return [row.videos[0].name if row.videos else row.problem_id for row in rows]


def test_one_replica_has_all() -> None:
    assert names(by_video(ROWS, 0, 1)) == ["a", "a", "a", "b", "b", "3", "c", "6", "d"]


@pytest.mark.parametrize("replicas", [2, 3, 4, 20])
def test_no_two_replicas_have_the_same_video(replicas: int) -> None:
    shares = [by_video(ROWS, replica, replicas) for replica in range(replicas)]
    everyone = [found.uid for share in shares for found in share]
    assert sorted(everyone) == sorted(found.uid for found in ROWS), "each row once"
    of = [set(names(share)) for share in shares]
    assert sum(map(len, of)) == len(set.union(*of))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [["a", "a"], ["a"], ["b", "b"], ["3"], ["c"], ["6"], ["d"]]),
        (2, [["a", "a", "a"], ["b", "b"], ["3", "c"], ["6", "d"]]),
        (64, [["a", "a", "a", "b", "b", "3", "c", "6", "d"]]),
    ],
)
def test_batches_end_between_videos(size: int, expected: list[list[str]]) -> None:
    rows = by_video(ROWS, 0, 1)
    assert [names(list(batch)) for batch in in_batches(rows, size)] == expected
