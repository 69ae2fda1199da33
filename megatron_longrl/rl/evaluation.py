"""Answers to a data set: validation within training, and the evaluate entry point."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.config import Config
from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.config.rollout import RolloutSection
from megatron_longrl.config.training import TrainingSection
from megatron_longrl.conversion.mapping import weight_stream
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import RewardedGroup, rollout_requests
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.observability.progress import ProgressLines
from megatron_longrl.observability.short_line import duration
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rl.evaluation_table import evaluation_table
from megatron_longrl.rl.summary import group_summary, means_of, record_of, summarize
from megatron_longrl.rollout.build import build_engine
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.weights.receiver import WeightIterator
from megatron_longrl.training.runtime import Runtime, build_runtime
from megatron_longrl.training.usable_rows import usable_rows

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""Shortest time between two lines of progress."""


def answer(
    runtime: Runtime,
    engine: RolloutEngine,
    rewards: Rewards,
    rows: Sequence[Row],
    name: str,
    progress: AnswerProgress | None = None,
) -> list[RewardedGroup]:
    """Generate and score responses to each row, with the settings of evaluation.

    Args:
        name: the name of the answers among the run's generations, which no other one has.
        progress: is told how far it has come.
    """
    config, sampling = (
        runtime.config,
        evaluation_settings(
            runtime.config.evaluation, runtime.config.training, runtime.config.rollout
        ),
    )
    groups: list[RewardedGroup] = []
    size = max(config.evaluation.batch_size, 1)
    for first in range(0, len(rows), size):
        prompts: list[Prompt] = runtime.build_prompts(rows[first : first + size])
        prompts, media = runtime.encode(prompts, for_training=False)
        requests = rollout_requests(prompts, f"{name}.{first}")
        answered = engine.generate(requests, media.embeddings, sampling, rewards.submit)
        groups += rewards.collect(answered)
        if progress is not None:
            progress.answered(len(groups))
    return groups


def evaluation_settings(
    evaluation: EvaluationSection, training: TrainingSection, rollout: RolloutSection
) -> SamplingSettings:
    """Return the sampling settings of evaluation. Every validation of a run uses the same random
    numbers, which no training step uses."""
    return SamplingSettings(
        n=evaluation.group_size,
        max_tokens=evaluation.max_tokens or rollout.max_tokens,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        top_k=evaluation.top_k,
        min_p=evaluation.min_p,
        stop_strings=tuple(rollout.stop),
        seed=training.seed,
        step=-1,
    )


def rollout_metrics(
    runtime: Runtime, groups: Sequence[RewardedGroup]
) -> tuple[dict[str, float], int]:
    """Return means over all responses of all replicas, and the number of prompts that were
    answered.

    Every reward of which the sum is made is there as ``reward/NAME``; responses without a reward do
    not count towards it. Accuracy also by kind of question, and by frames of the prompt's videos
    where they differ. Collective over the world.
    """
    mine = [group_summary(group) for group in groups] if runtime.replica_rank == 0 else []
    parts = gather_objects(runtime.groups.gloo_group, mine)
    everyone = [entry for part in parts for entry in part]
    return means_of(everyone), len(everyone)


def reward_counters(runtime: Runtime, rewards: Rewards) -> dict[str, float]:
    """Sum the counts of ``rewards.pop_counters()`` over all replicas; collective over the world."""
    mine = rewards.pop_counters()
    if runtime.replica_rank != 0:
        mine = dict.fromkeys(mine, 0)
    parts = gather_objects(runtime.groups.gloo_group, mine)
    return {name: sum(part[name] for part in parts) for name in mine}


class AnswerProgress:
    """Tells how many questions are answered: a bar on a terminal, else a line once in some seconds.

    Args:
        total: questions of this replica; the others have as many.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._lines = ProgressLines("evaluate", total, sys.stderr)
        self._began = self._told = time.monotonic()

    def answered(self, count: int) -> None:
        """Set the number of questions that have been answered."""
        now = time.monotonic()
        self._lines.step(count, "")
        if count >= self._total:
            self._lines.close()
        elif now - self._told >= PROGRESS_SECONDS:
            self._told = now
            left = (now - self._began) / count * (self._total - count)
            self._lines.line(f"answered {count} of {self._total}, ETA {duration(left)}")


def evaluate_checkpoint(config: Config) -> None:
    """Answer ``config.data`` with the weights of ``config.load`` and write ``config.output``."""
    assert config.checkpoint.load is not None, "the configuration's rules ask for --load"
    runtime = build_runtime(config, "evaluate")
    found = usable_rows(runtime, config.evaluation.data, "heldout.jsonl")
    rows = found.rows[: config.evaluation.samples]
    model = runtime.model
    load_weights(
        config.checkpoint.load,
        modules=model.modules,
        optimizers=model.optimizers,
        groups=runtime.groups,
        config=runtime.config,
    )
    with (
        closing(build_rewards(runtime.config.reward, runtime.groups)) as rewards,
        closing(
            build_engine(runtime.config, runtime.tokenizer, runtime.groups, model.policy.module)
        ) as engine,
    ):
        weights = WeightIterator(
            lambda: weight_stream(model.modules, runtime.config, runtime.groups)
        )
        engine.update_weights(weights, version=0)
        mine = runtime.rows_of_replica(rows)
        progress = AnswerProgress(len(mine)) if runtime.is_writer else None
        groups = answer(runtime, engine, rewards, mine, "evaluation", progress)
        _report(runtime, groups, reward_counters(runtime, rewards), found.left_out)


def _report(
    runtime: Runtime, groups: Sequence[RewardedGroup], counters: dict[str, float], left_out: int
) -> None:
    """Gather all replicas' answers; the writing rank logs the accuracy and writes the file."""
    mine = [record_of(group) for group in groups] if runtime.replica_rank == 0 else []
    skipped = runtime.media_metrics(None)["samples_skipped"] + left_out
    parts = gather_objects(runtime.groups.gloo_group, mine)
    answers = [record for part in parts for record in part]
    with raise_on_all_ranks(runtime.groups.gloo_group):
        if not answers:
            raise UserError("no row could be answered: every video failed, see the warnings above")
        if runtime.is_writer:
            summary = summarize(answers) | {"samples_skipped": skipped, **counters}
            sys.stdout.write(evaluation_table(summary) + "\n")
            if runtime.config.evaluation.output is not None:
                content = json.dumps({**summary, "answers": answers}, indent=1)
                atomic_write_text(Path(runtime.config.evaluation.output), content)
