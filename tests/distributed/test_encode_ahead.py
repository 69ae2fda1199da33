"""While an engine beside the trainer generates, the next step's videos are encoded."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch.distributed as dist

from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rl.trainer import RLTrainer
from megatron_longrl.rollout.engine import RolloutHandle
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.runtime import Runtime, build_runtime
from tests.distributed.cases import CP2
from tests.distributed.layouts import tiny_config
from tests.functional.launches import curve
from tests.scripted_engine import ScriptedEngine, questions

STEPS = 3
FROZEN: dict[str, object] = {"freeze_vision_tower": True, "freeze_projector": True}
LAG: dict[str, object] = {"rollout_lag": 1, "rollout_correction": "token"}
WORK = {"frames_encoded", "frames_decoded", "embeddings_from_memory", "mem-embeddings-bytes"}
"""Metrics that say when frames were encoded."""
FIRST, SECOND = 37 + 1, 6 + 3
"""Frames of the videos of the first two steps; the third has those of the first."""


class EngineBeside(ScriptedEngine):
    """Notes how many videos are in memory when it is waited for."""

    def __init__(self, runtime: Runtime, runs_beside: bool) -> None:
        super().__init__(lambda number, index, step: (number + index) % 2 == 0)
        self.runs_beside = runs_beside
        self.store = runtime.store
        self.kept: list[int] = []

    def start(self, *given):
        groups = self.generate(*given)

        def finish(version):
            self.kept.append(len(self.store))
            return groups

        return RolloutHandle(finish)


def run(folder, beside, options, *, lost=None, goes_on=True):
    """Metrics of every step, and the engine.

    Args:
        lost: the question whose video does not exist.
        goes_on: whether a step may take rows ahead.
    """
    usual = {"lr": 1e-3, "grpo_prompts_per_step": 2, "train_iters": STEPS}
    runtime = build_runtime(tiny_config(folder, **(usual | options)), "rl")
    engine = EngineBeside(runtime, beside)
    trainer = RLTrainer(runtime, engine, build_rewards(runtime.config.reward, runtime.groups), None)
    rows = questions(folder, 2 * STEPS)
    if lost is not None:
        rows[lost] = dataclasses.replace(rows[lost], videos=(folder / "nowhere.webm",))
    source = DataIterator(
        RowSampler(rows, 0, shuffle=False), 0, 2, runtime.groups, goes_on=lambda _: goes_on
    )
    steps = [trainer.step(step, source) for step in range(STEPS)]
    return steps, engine


def without_work(steps):
    return [{k: v for k, v in step.items() if k not in WORK} for step in steps]


@pytest.mark.parametrize("lag", [{}, LAG], ids=["lag 0", "lag 1"])
@pytest.mark.parametrize("layout", [{}, CP2], ids=["DP2", "MR-SP2"])
def test_the_next_step_finds_its_videos(tiny_data, layout, lag):
    options = FROZEN | layout | lag
    ahead, engine = run(tiny_data, True, options)
    alone, within = run(tiny_data, False, options)
    assert curve(ahead, "frames_encoded") == [FIRST + SECOND, 0, 0]
    assert curve(alone, "frames_encoded") == [FIRST, SECOND, 0]
    assert without_work(ahead) == without_work(alone)
    # Of both steps, when the first one's responses are waited for; each replica has its own.
    videos = [4, 4] if layout else [1, 3]
    assert engine.kept[0] == videos[dist.get_rank()]
    assert within.kept[0] == (2 if layout else 1)


@pytest.mark.parametrize(
    ("options", "goes_on", "frames"),
    [
        ({}, True, [FIRST, SECOND, FIRST]),
        (FROZEN | {"embedding_store_gib": 1e-9}, True, [FIRST, SECOND, FIRST]),
        (FROZEN, False, [FIRST, SECOND, 0]),
    ],
    ids=["trained encoder", "no memory", "before a checkpoint"],
)
def test_nothing_is_encoded_in_vain(tiny_data, options, goes_on, frames):
    steps, _ = run(tiny_data, True, options | CP2, goes_on=goes_on)
    assert curve(steps, "frames_encoded") == frames


def test_what_cannot_be_read_is_told_of_in_its_step(tiny_data, caplog):
    with caplog.at_level(logging.WARNING):
        steps, _ = run(tiny_data, True, FROZEN | CP2, lost=3)
    assert curve(steps, "samples_skipped") == [0, 1, 0]
    assert curve(steps, "frames_encoded") == [FIRST, 0, 0]
    told = [record for record in caplog.records if "sample skipped" in record.getMessage()]
    assert len(told) == (dist.get_rank() == 0)
