"""Rollouts ahead of the update or over several steps: which weights made them, and resumed runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.functional.launches import (
    CP2,
    Arena,
    Metrics,
    curve,
    kill_and_resume,
    metrics_of,
    rl_flags,
)

LAG = (*CP2, "--rollout-lag", "1", "--rollout-correction", "token")
SLOW = """
import time

def slow(response, **_):
    time.sleep(0.05)
    return float("A" in response)
"""


@dataclass(frozen=True)
class Lag:
    """A run with ``--rollout-lag 1``: what it was asked for, and its metrics."""

    flags: tuple[str, ...]
    steps: list[Metrics]


@pytest.fixture(scope="module")
def lag(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Lag:
    """Five steps, rollouts one step ahead, beside a slow reward."""
    folder = tmp_path_factory.mktemp("lag")
    function = folder / "slow.py"
    function.write_text(SLOW)
    flags = (*rl_flags(arena, sft_run), *LAG, "--reward-function", f"{function}:slow")
    arena.launch("train_rl", *flags, "--save", folder / "run").succeeded()
    return Lag(flags, metrics_of(folder / "run"))


def test_a_step_trains_on_the_weights_before(lag: Lag) -> None:
    # The steps behind a checkpoint, every second one, and the first are generated when they begin.
    assert curve(lag.steps, "rollout_lag") == [0, 1, 0, 1, 0]
    assert all(math.isfinite(value) for step in lag.steps for value in step.values())
    gaps = curve(lag.steps, "rollout_corr/logprob_diff_mean")
    assert max(gaps[::2]) <= 1e-4
    assert min(gaps[1::2]) > 1e-4, "the gap to older weights is more than rounding"
    assert min(curve(lag.steps, "rollout_corr/rollout_is_eff_sample_size")) > 0.5


@pytest.mark.full("tests/functional/test_resume.py::test_rl")
def test_a_killed_run_goes_on_alike(arena: Arena, lag: Lag, tmp_path: Path) -> None:
    kill_and_resume(arena, "train_rl", lag.flags, tmp_path, "0:3")
    assert metrics_of(tmp_path) == lag.steps


@pytest.mark.full(
    "tests/distributed/test_server_engine.py::"
    "test_responses_are_those_of_the_colocated_engine_before_and_after_updates"
)
def test_a_server_generates_beside_the_update(arena: Arena, lag: Lag, tmp_path: Path) -> None:
    is_alike_with_a_server(arena, lag.flags, lag.steps, tmp_path)


def is_alike_with_a_server(
    arena: Arena, flags: Sequence[str], steps: list[Metrics], folder: Path
) -> None:
    """Which generates beside the update."""
    run = folder / "beside"
    arena.launch("train_rl", *flags, "--save", run, "--rollout-engine", "server").succeeded()
    for one, other in zip(metrics_of(run), steps, strict=True):
        names = {"rollout_lag", "reward/mean", "response_length/mean", "lm loss", "grad-norm"}
        assert one.keys() & names == other.keys() & names
        for name in names & other.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


@pytest.mark.full("tests/distributed/test_encode_ahead.py::test_nothing_is_encoded_in_vain")
def test_a_trained_encoder_encodes_again_for_the_update(
    arena: Arena, sft_run: Path, tmp_path: Path
) -> None:
    flags = [flag for flag in rl_flags(arena, sft_run) if not flag.startswith("--freeze")]
    run = tmp_path / "run"
    arena.launch("train_rl", *flags, *LAG, "--train-iters", "3", "--save", run).succeeded()
    steps = metrics_of(run)
    assert curve(steps, "rollout_lag") == [0, 1, 0]
    assert min(curve(steps, "grad-norm")) > 0


@pytest.fixture(scope="module")
def partial(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Lag:
    """Five steps whose responses may take several of them."""
    options = (*CP2, "--rollout-step-tokens", "8", "--rollout-correction", "ratio")
    flags = (*rl_flags(arena, sft_run), *options, "--save-interval", "3")
    run = tmp_path_factory.mktemp("partial")
    arena.launch("train_rl", *flags, "--save", run).succeeded()
    return Lag(flags, metrics_of(run))


def test_unfinished_responses_go_on_with_newer_weights(partial: Lag) -> None:
    steps = partial.steps
    carried = curve(steps, "partial_groups")
    # Responses are longer than eight tokens; the steps before a checkpoint complete all groups.
    assert min(carried[0], carried[1], carried[3]) > 0 and carried[2] == carried[4] == 0
    lags = curve(steps, "rollout_lag")
    assert lags[0] == lags[3] == 0 and 0 < lags[2] < 2
    assert max(curve(steps, "response_length/mean")) > 8
    assert all(math.isfinite(value) for step in steps for value in step.values())


@pytest.mark.full(
    "tests/distributed/test_server_engine.py::"
    "test_responses_are_those_of_the_colocated_engine_before_and_after_updates"
)
def test_a_server_lets_them_go_on_too(arena: Arena, partial: Lag, tmp_path: Path) -> None:
    is_alike_with_a_server(arena, partial.flags, partial.steps, tmp_path)
