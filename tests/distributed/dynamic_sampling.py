"""Steps with dynamic sampling on made-up responses, in any layout."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
import torch

from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.data.rows import Row
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rl.trainer import RLTrainer
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.runtime import Runtime, build_runtime
from tests.distributed.layouts import tiny_config
from tests.scripted_engine import ScriptedEngine, number_of, questions

PER_STEP = 4
"""Groups of a step."""


def says_something_where(live: Collection[int]) -> ScriptedEngine:
    """Groups of these questions are half right; of the others the even ones are all wrong, the odd
    ones all right."""
    return ScriptedEngine(lambda number, j, step: j == 0 if number in live else number % 2 == 1)


def build(folder: Path, live: Collection[int], **changes: object) -> tuple[RLTrainer, Runtime]:
    """A trainer on a scripted engine."""
    options: dict[str, object] = {"rl_algorithm": "dapo", "lr": 1e-3, "train_iters": 4}
    runtime = build_runtime(tiny_config(folder, **(options | changes)), "rl")
    rewards = build_rewards(runtime.config.reward, runtime.groups)
    return RLTrainer(runtime, says_something_where(live), rewards, None), runtime


def source_of(rows: Sequence[Row], runtime: Runtime) -> DataIterator:
    return DataIterator(RowSampler(rows, 0, shuffle=False), 0, PER_STEP, runtime.groups)


def weights(runtime: Runtime) -> list[torch.Tensor]:
    modules = runtime.model.modules.values()
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(ours: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


def nothing_to_train_on(folder: Path, caplog: pytest.LogCaptureFixture, **layout: object) -> None:
    """All groups of all rounds are dead: a message, no update; the next step goes on."""
    trainer, runtime = build(folder, range(12, 16), dynamic_sampling_max_tries=3, **layout)
    source, before = source_of(questions(folder, 16), runtime), weights(runtime)
    with caplog.at_level(logging.WARNING):
        metrics = trainer.step(0, source)
    assert metrics["updates"] == metrics["skipped_updates"] == metrics["grad-norm"] == 0
    assert metrics["sampling_rounds"] == 3
    assert metrics["zero_advantage/mean"] == 1
    assert source.consumed == 3 * PER_STEP
    assert same(weights(runtime), before)
    told = [record.getMessage() for record in caplog.records]
    if runtime.is_writer:
        short, none = told
        assert short.startswith("step 1 trains on 4 groups fewer than asked for: after 3 rounds")
        assert "(accuracy outside 0.01 to 0.99)" in short
        assert none == "step 1 makes no update: no group teaches anything"
    else:
        assert not told
    # Its learning rate has gone on, and so do rows and updates.
    assert trainer.step(1, source)["updates"] == 1
    assert source.consumed == 4 * PER_STEP
    assert not same(weights(runtime), before)


def refilled(
    folder: Path,
    live: Collection[int],
    trained: Sequence[Sequence[int]],
    rounds: int,
    consumed: int,
    tries: int = 20,
    updates: int = 1,
    **layout: object,
) -> None:
    """Dead groups are replaced; those that survived stay; the update is that of a step which was
    given just the trained groups.

    Args:
        live: questions whose groups say something.
        trained: questions of the groups that are trained, by replica.
        rounds, consumed: of generation, and rows that they take.
        updates: mini-batches of the step.
    """
    rows = questions(folder, 16)
    layout["global_batch_size"] = 2 * PER_STEP // updates
    trainer, runtime = build(folder, live, dynamic_sampling_max_tries=tries, **layout)
    engine = trainer.engine
    assert isinstance(engine, ScriptedEngine)
    mine = list(trained[runtime.groups.dp.rank()])
    source = source_of(rows, runtime)
    rollouts = trainer.collector.collect_step(trainer.collector.start(0, source), source)
    assert [number_of(group.prompt.row) for group in rollouts.groups] == mine
    assert rollouts.rounds == rounds
    assert rollouts.missing == PER_STEP - sum(map(len, trained))
    assert source.consumed == consumed
    # Each group as it was generated, once; a full replica asks for nothing more.
    by_number = {number_of(group.prompt.row): group for group in engine.given}
    assert len(by_number) == len(engine.given)
    assert all(
        group.group_id == by_number[number].group_id
        for group, number in zip(rollouts.groups, mine, strict=True)
    )
    assert [number for number, _ in engine.asked] == list(range(rounds))
    for group in rollouts.groups:
        assert {v.key() for v in group.prompt.media} <= set(rollouts.media.embeddings)

    source = source_of(rows, runtime)
    metrics = trainer.step(0, source)
    assert (metrics["sampling_rounds"], metrics["updates"]) == (rounds, updates)
    assert metrics["reward/mean"] == pytest.approx(_mean_reward(range(consumed), live))
    after = weights(runtime)

    chosen = [rows[number] for part in trained for number in part]
    if len(chosen) == PER_STEP:
        plain, again = build(folder, live, dynamic_sampling=False, **layout)
        expected = plain.step(0, source_of(chosen, again))
        for name in ("grad-norm", "policy loss", "entropy/mean"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
        if updates == 1:
            # More updates need old log-probabilities, of videos that came in other rounds: other
            # sizes of the encoder's batches round differently.
            assert same(weights(again), after)


def _mean_reward(numbers: Collection[int], live: Collection[int]) -> float:
    """Of all generated responses, thrown away or not: right answers in the right form earn 1, wrong
    ones 0.1."""
    accuracy = [0.5 if number in live else float(number % 2) for number in numbers]
    return sum(0.1 + 0.9 * value for value in accuracy) / len(accuracy)
