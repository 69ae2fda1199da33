"""Which checkpoints stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.checkpoint.folder import iteration_folder
from megatron_longrl.checkpoint.retention import Retention


def save(directory: Path, retention: Retention, scores: dict[int, float]) -> list[int]:
    """Save at every iteration; the iterations that are there in the end."""
    for iteration, score in scores.items():
        retention.note(iteration, {"score": score})
        folder = iteration_folder(directory, iteration)
        folder.mkdir(parents=True)
        (folder / "weights").write_text("w")
        retention.prune(directory)
    return sorted(int(path.name[5:]) for path in directory.iterdir())


SCORES = {10: 0.1, 20: 0.9, 30: 0.4, 40: 0.9, 50: 0.2}


@pytest.mark.parametrize(
    ("keep_last", "best_by", "left"),
    [
        (None, None, [10, 20, 30, 40, 50]),
        (None, "score", [10, 20, 30, 40, 50]),
        (2, None, [40, 50]),
        (1, None, [50]),
        (1, "score", [20, 50]),
        (2, "-score", [10, 40, 50]),
    ],
)
def test_the_newest_and_the_best_stay(keep_last, best_by, left, tmp_path):
    assert save(tmp_path / "run", Retention(keep_last, best_by), SCORES) == left


def test_a_resumed_run_remembers_the_best(tmp_path):
    first = Retention(1, "score")
    assert save(tmp_path / "run", first, {10: 0.5}) == [10]
    again = Retention(1, "score", first.state())
    assert save(tmp_path / "run", again, {20: 0.3, 30: 0.4}) == [10, 30]
    assert save(tmp_path / "run", again, {40: 0.6}) == [40]


def test_a_metric_that_is_not_there_is_named_once(tmp_path, caplog):
    retention = Retention(1, "valid/score")
    assert save(tmp_path / "run", retention, SCORES) == [50]
    assert caplog.text.count("no metric valid/score to judge its checkpoint by; it has score") == 1
