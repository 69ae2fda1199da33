"""Means over the groups of a step or of a validation, of all replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from megatron_longrl.evaluation.benchmark import BENCHMARK, find_benchmark
from megatron_longrl.evaluation.records import record_of
from megatron_longrl.experience.rollouts import RewardedGroup
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.training.runtime import Runtime

RATES = ("reward", "accuracy", "format", "response_length", "zero_advantage")
FURTHER = ("reward/", "response_length/", "accuracy_shuffled")
"""Beginnings of the metrics that not every run or group has."""


def means_of(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over groups by their :func:`group_summary`, accuracy also by kind and frames."""
    means = {f"{name}/mean": _mean(summaries, name) for name in RATES}
    further = {name for entry in summaries for name in entry if name.startswith(FURTHER)}
    means |= {name: _mean(summaries, name) for name in sorted(further)}
    return means | accuracy_by(summaries, "kind") | accuracy_by(summaries, "frames")


def accuracy_by(summaries: Sequence[Mapping[str, Any]], field: str) -> dict[str, float]:
    """``accuracy/<field>/<value>`` for every value of a field, where there are several."""
    by_value: dict[Any, list[float]] = {}
    for summary in summaries:
        by_value.setdefault(summary[field], []).append(summary["accuracy"])
    if len(by_value) < 2:
        return {}
    return {
        f"accuracy/{field}/{value}": sum(found) / len(found)
        for value, found in sorted(by_value.items())
    }


def _frames_bin(frames: int) -> str:
    """``"17-32"``: between powers of two, so that lengths make few groups."""
    most = 1 << max(frames - 1, 0).bit_length()
    return f"{most // 2 + 1}-{most}" if most > 2 else str(frames)


def group_summary(group: RewardedGroup) -> dict[str, Any]:
    """Return the figures of a group of which :func:`means_of` takes means."""
    lengths = torch.tensor([float(len(r.token_ids)) for r in group.rollouts])
    cut = [rollout.finish_reason == "length" for rollout in group.rollouts]
    rewards = group.rewards[group.valid]
    spread = float(rewards.max() - rewards.min()) if len(rewards) else 0.0
    means = {f"reward/{name}": _mean_of(scores) for name, scores in group.reward_terms.items()}
    means["reward"] = _mean_of(rewards.tolist())
    return {
        **{name: mean for name, mean in means.items() if mean is not None},
        **group.metrics,
        "accuracy": group.accuracy,
        "response_length": float(lengths.mean()),
        "response_length/clip_ratio": sum(cut) / len(cut),
        "zero_advantage": float(spread == 0.0),
        "kind": group.prompt.row.problem_type,
        "frames": _frames_bin(group.prompt.num_frames),
    }


def _mean_of(scores: Sequence[float | None]) -> float | None:
    """Return the mean of the scores that are not None; None where there is none."""
    there = [score for score in scores if score is not None]
    return sum(there) / len(there) if there else None


def _mean(entries: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the mean over the entries that have a key; 0 where none has."""
    return _mean_of([entry.get(name) for entry in entries]) or 0.0


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


def benchmark_accuracies(runtime: Runtime, groups: Sequence[RewardedGroup]) -> dict[str, float]:
    """The figure of each benchmark that rows are of, by its name and by its published rule;
    collective over the world."""
    mine: list[tuple[str, dict[str, Any]]] = []
    if runtime.replica_rank == 0:
        named = [(group.prompt.row.metadata.get(BENCHMARK), group) for group in groups]
        mine = [(str(name), record_of(group)) for name, group in named if name is not None]
    everyone = [found for part in gather_objects(runtime.groups.gloo_group, mine) for found in part]
    return {
        name: find_benchmark(name).total(
            [(record, record["benchmark_correct"]) for of, record in everyone if of == name]
        )
        for name in sorted({name for name, _ in everyone})
    }
