"""Where a run starts, and when it validates and saves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from megatron_longrl.checkpoint.loading import Loaded
from megatron_longrl.observability.logging import MetricsLogger
from megatron_longrl.observability.timing import PhaseTimer
from megatron_longrl.planner.cost import HardwareProfile
from megatron_longrl.training import loop
from megatron_longrl.training.loop import TrainingLoop, start
from tests.unit.made_up_config import make_config


@pytest.mark.parametrize(
    ("interval", "due"),
    [(None, [7]), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (20, [7])],
)
def test_every_interval_and_after_the_last_step(interval, due):
    run: Any = SimpleNamespace(config=make_config(train_iters=7))
    found = []
    for run.iteration in range(1, 8):
        if TrainingLoop._is_due(run, interval, run.iteration):
            found.append(run.iteration)
    assert found == due


INTERRUPTED, WEIGHTS = Loaded(Path("interrupted"), iteration=5), Loaded(Path("weights"))


@pytest.mark.parametrize(
    ("flags", "has_checkpoint", "result", "weights_of"),
    [
        ({}, False, Loaded(Path()), None),
        ({"load": "run"}, True, INTERRUPTED, None),
        ({"load": "run"}, False, Loaded(Path()), None),
        ({"pretrained_checkpoint": "sft"}, False, WEIGHTS, "sft"),
        # A new stage that is interrupted goes on with itself, not with the stage before.
        ({"load": "run", "pretrained_checkpoint": "sft"}, True, INTERRUPTED, None),
        ({"load": "run", "pretrained_checkpoint": "sft"}, False, WEIGHTS, "sft"),
        ({"load": "run", "finetune": True}, True, WEIGHTS, "run"),
    ],
)
def test_start(monkeypatch, flags, has_checkpoint, result, weights_of):
    taken = []

    def load_checkpoint(folder: str, **parts: Any) -> Loaded | None:
        assert folder == "run"
        return INTERRUPTED if has_checkpoint else None

    def load_weights(folder: str, **parts: Any) -> Loaded:
        taken.append(folder)
        return WEIGHTS

    monkeypatch.setattr(loop, "load_checkpoint", load_checkpoint)
    monkeypatch.setattr(loop, "load_weights", load_weights)
    model = SimpleNamespace(modules={}, optimizers={}, scheduler=None)
    run: Any = SimpleNamespace(config=make_config(**flags), model=model, groups=None)
    assert start(run) == result
    assert taken == ([] if weights_of is None else [weights_of])


def test_a_resumed_run_reckons_with_the_machine_that_it_had_measured():
    measured, saved = HardwareProfile(ranks=2, flops=1.0), HardwareProfile(ranks=2, flops=2.0)
    assert HardwareProfile.restored(dataclasses.asdict(saved), measured) == saved
    assert HardwareProfile.restored(
        dataclasses.asdict(saved), HardwareProfile(ranks=4)
    ) == HardwareProfile(ranks=4)
    assert HardwareProfile.restored(None, measured) == measured


def test_a_validation_before_the_first_step_is_no_part_of_its_time():
    steps: list[dict[str, float]] = []
    log = SimpleNamespace(
        log_step=lambda iteration, metrics, **others: steps.append(metrics),
        warn=lambda iteration, line: None,
    )
    timer = PhaseTimer(lambda: None)

    def validate() -> dict[str, float]:
        with timer("decode"):
            return {"valid/accuracy": 0.5}

    def step(iteration: int, goes_on: object) -> dict[str, float]:
        with timer("update"):
            return {"updates": 1}

    run: Any = SimpleNamespace(
        config=make_config(train_iters=1, eval_at_start=True, valid_data_path=["valid.jsonl"]),
        runtime=SimpleNamespace(timer=timer, is_writer=False, take_pictures=dict),
        saver=SimpleNamespace(poll=lambda: None),
        iteration=0,
        _peak_memory=lambda: 0,
        _is_due=lambda interval, iteration: False,
        _stop_if_asked=lambda trainer: None,
    )
    trainer: Any = SimpleNamespace(
        step=step, validate=validate, validates=True, is_ahead=False, samples_per_step=1
    )
    TrainingLoop._steps(run, trainer, cast(MetricsLogger, log))
    before, first = steps
    assert before == {"valid/accuracy": 0.5}
    assert [name for name in first if name.startswith("time/")] == ["time/update"]
