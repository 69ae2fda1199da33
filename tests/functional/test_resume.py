"""A run that was killed and started again leaves the metrics of one that never was."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from megatron_longrl.checkpoint.folder import newest_complete, partial_folder
from tests.functional.launches import (
    CP2,
    SFT,
    TP2,
    Arena,
    curve,
    kill_and_resume,
    metrics_of,
    rl_flags,
    without_encoding,
)


@pytest.mark.full(
    "tests/distributed/test_async_save.py::test_a_run_goes_on_as_from_a_save_that_it_waited_for"
)
def test_killed_while_a_checkpoint_is_written(arena: Arena, sft_run: Path, tmp_path: Path) -> None:
    """Training has gone on; the checkpoint before is the newest."""
    folder = tmp_path / "run"
    saving = ("--async-save", "--save-interval", "20", "--save", folder, "--load", folder)
    flags = (*SFT, *CP2, *saving, "--train-data-path", arena.data("sft"))
    watched = {"KILL_AT": "0:45", "HOLD_SAVE": "1:1"}
    killed = arena.launch("train_sft", *flags, watched=watched, cold=True)
    assert killed.status != 0 and "SIGKILL" in killed.output
    assert curve(metrics_of(folder), "iteration")[-1] == 45
    assert newest_complete(folder)[0].name == "iter_0000020"
    # The process that outlives a killed rank removes what it has half written.
    deadline = time.monotonic() + 60
    while partial_folder(folder / "iter_0000040").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    arena.launch("train_sft", *flags).succeeded()
    assert metrics_of(folder) == metrics_of(sft_run)
    assert newest_complete(folder)[0].name == "iter_0000060"


@pytest.mark.full("tests/functional/test_resume.py::test_rl")
def test_sft_with_a_trained_tower(arena: Arena, sft_run: Path, tmp_path: Path) -> None:
    flags = (*SFT, *CP2, "--train-data-path", arena.data("sft"))
    kill_and_resume(arena, "train_sft", flags, tmp_path / "run", at="1:45")
    assert metrics_of(tmp_path / "run") == metrics_of(sft_run)


def test_rl(rl_run: Path, resumed_rl_run: Path) -> None:
    steps = without_encoding(metrics_of(rl_run))
    assert len(steps) == 5
    assert without_encoding(metrics_of(resumed_rl_run)) == steps


@pytest.mark.full("tests/distributed/test_checkpoint.py::test_a_run_goes_on_at_another_layout")
@pytest.mark.parametrize(("ranks", "layout"), [(2, TP2), (1, ())], ids=["TP2", "one rank"])
def test_sft_at_another_layout(
    arena: Arena, sft_run: Path, tmp_path: Path, ranks: int, layout: tuple[str, ...]
) -> None:
    flags = (*SFT, *layout, "--train-data-path", arena.data("sft"))
    places = ("--load", sft_run / "iter_0000040", "--save", tmp_path / "run")
    arena.launch("train_sft", *flags, *places, ranks=ranks).succeeded()
    ours, whole = metrics_of(tmp_path / "run"), metrics_of(sft_run)[40:]
    assert curve(ours, "iteration") == curve(whole, "iteration")
    assert curve(ours, "learning-rate") == curve(whole, "learning-rate")
    for name in ("lm loss", "grad-norm"):
        assert curve(ours, name) == pytest.approx(curve(whole, name), rel=1e-4), name


@pytest.mark.full("tests/functional/test_curves.py::test_one_rank_learns_as_two_ranks_of_mrsp")
def test_rl_on_one_rank(arena: Arena, sft_run: Path, rl_run: Path, tmp_path: Path) -> None:
    places = ("--load", rl_run / "iter_0000002", "--save", tmp_path / "run")
    arena.launch("train_rl", *rl_flags(arena, sft_run), *places, ranks=1).succeeded()
    ours, whole = metrics_of(tmp_path / "run"), metrics_of(rl_run)[2:]
    for name in ("iteration", "consumed_train_samples", "reward/mean", "response_length/mean"):
        assert curve(ours, name) == pytest.approx(curve(whole, name), rel=1e-6), name
    for name in ("lm loss", "grad-norm"):
        assert curve(ours, name) == pytest.approx(curve(whole, name), rel=1e-3, abs=1e-5), name
    assert all(math.isfinite(value) for value in curve(ours, "lm loss"))
