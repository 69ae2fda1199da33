"""Which checkpoints stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_longrl.checkpoint.checksums import checksums
from megatron_longrl.checkpoint.folder import CORE_FILES, STATE_FILE, TRACKER, iteration_folder
from megatron_longrl.checkpoint.retention import Retention
from tests.unit.checkpoint.made_up_checkpoint import write_checkpoint


def save(directory: Path, retention: Retention, scores: dict[int, float]) -> list[int]:
    """Save at every iteration; the iterations that are there in the end."""
    for iteration, score in scores.items():
        retention.note(iteration, {"score": score})
        write_checkpoint(directory, iteration)
        retention.prune(directory, iteration)
    return there(directory)


def there(directory: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in directory.iterdir() if path.name != TRACKER)


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


def break_it(directory: Path, iteration: int) -> None:
    (iteration_folder(directory, iteration) / CORE_FILES[0]).unlink()


@pytest.mark.parametrize(
    ("broken", "keep_last", "left"),
    [
        # The newest is broken, so the run has gone on from 4 and written 5.
        ([6], 1, [5, 6]),
        ([6], 2, [4, 5, 6]),
        ([6], 9, [1, 2, 4, 5, 6]),
        # A broken one before is none of those that are kept, and goes with what is older.
        ([4], 2, [2, 4, 5, 6]),
        ([2], 2, [4, 5, 6]),
        ([1, 2, 4, 6], 2, [1, 2, 4, 5, 6]),
    ],
)
def test_a_broken_one_takes_no_place_of_a_whole_one(broken, keep_last, left, tmp_path):
    for iteration in (1, 2, 4, 5, 6):
        write_checkpoint(tmp_path, iteration)
    for iteration in broken:
        break_it(tmp_path, iteration)
    Retention(keep_last, None).prune(tmp_path, 5)
    assert there(tmp_path) == left


def test_what_was_written_stays_beside_those_of_a_longer_run(tmp_path):
    write_checkpoint(tmp_path, 60)
    retention = Retention(2, None)
    assert save(tmp_path, retention, {1: 0, 2: 0, 3: 0}) == [2, 3, 60]


def test_the_best_one_stays_when_the_run_has_gone_back(tmp_path):
    retention = Retention(1, "score")
    assert save(tmp_path, retention, {10: 0.9, 20: 0.1, 30: 0.2}) == [10, 30]
    break_it(tmp_path, 30)
    again = Retention(1, "score", retention.state())
    assert save(tmp_path, again, {25: 0.3}) == [10, 25, 30]


def test_of_a_checkpoint_that_is_kept_elsewhere_goes_the_link(tmp_path):
    directory, archive = tmp_path / "run", tmp_path / "archive"
    write_checkpoint(directory, 10)
    iteration_folder(directory, 10).rename(archive)
    iteration_folder(directory, 10).symlink_to(archive)
    files = sorted(path.name for path in archive.rglob("*"))
    write_checkpoint(directory, 20)
    Retention(1, None).prune(directory, 20)
    assert there(directory) == [20]
    assert sorted(path.name for path in archive.rglob("*")) == files


def test_a_damaged_checkpoint_of_the_right_size_takes_no_place_of_a_whole_one(tmp_path):
    directory = tmp_path / "run"
    for iteration in (10, 20, 30):
        folder = write_checkpoint(directory, iteration)
        state = json.loads((folder / STATE_FILE).read_text())
        state["checksums"] = checksums(folder, state["files"])
        (folder / STATE_FILE).write_text(json.dumps(state))
    (iteration_folder(directory, 20) / CORE_FILES[0]).write_bytes(b"eroc")
    Retention(2, None).prune(directory, 30)
    assert there(directory) == [10, 20, 30]
