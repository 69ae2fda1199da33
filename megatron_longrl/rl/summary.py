"""Summaries of answered prompts: means over the groups of a step, and the summary of an
evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from megatron_longrl.data.rows import Row
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.experience.rollouts import RewardedGroup
from megatron_longrl.rewards.options import options_of

RATES = ("reward", "accuracy", "format", "response_length", "cut_off", "zero_advantage")
FURTHER = ("reward/", "accuracy_shuffled")
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


def summarize(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy (0 to 1) with its 95 % interval (Wilson), by kind of question, and the mean reward
    of the answers that have one.

    ``chance_accuracy`` is that of guessing among the options of each question (questions without
    options count as 0), ``majority_accuracy`` that of always giving the most frequent reference."""
    right = sum(record["correct"] for record in answers)
    rewards = [record["reward"] for record in answers if record["reward"] is not None]
    low, high = wilson_interval(right / len(answers), len(answers))
    kinds: dict[str, list[float]] = {}
    options: dict[str, int] = {}
    for record in answers:
        kinds.setdefault(record["problem_type"], []).append(record["correct"])
        options[record["answer"]] = options.get(record["answer"], 0) + 1
    return {
        "accuracy": right / len(answers),
        "accuracy_low": low,
        "accuracy_high": high,
        "samples": len(answers),
        "chance_accuracy": sum(record["chance"] for record in answers) / len(answers),
        "majority_accuracy": max(options.values()) / len(answers),
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "format": sum(record["format"] for record in answers) / len(answers),
        "response_length": sum(record["tokens"] for record in answers) / len(answers),
        "by_problem_type": {kind: sum(v) / len(v) for kind, v in sorted(kinds.items())},
    }


def wilson_interval(rate: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion: Wilson, J. Am. Stat. Assoc. 22 (1927) 209.

    Everything is possible where nothing was counted.
    """
    if total == 0:
        return 0.0, 1.0
    scale = 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def record_of(group: RewardedGroup) -> dict[str, Any]:
    """Means over the responses to a question, and the only response or all of them."""
    row = group.prompt.row
    rewards = [rollout.reward if rollout.valid else None for rollout in group.rollouts]
    answers = [
        {
            "response": rollout.text,
            "correct": correct,
            "reward": reward,
            "rewards": dict(rollout.reward_terms),
            "tokens": len(rollout.token_ids),
            "finish_reason": rollout.finish_reason,
        }
        for rollout, reward, correct in zip(
            group.rollouts, rewards, group.correct.tolist(), strict=True
        )
    ]
    lengths = [len(rollout.token_ids) for rollout in group.rollouts]
    return {
        "problem_id": row.problem_id,
        "problem_type": row.problem_type,
        "problem": row.problem,
        "media": [str(medium.path) for medium in row.media],
        "answer": row.answer,
        "chance": _chance(row),
        **(answers[0] if len(answers) == 1 else {"responses": answers}),
        "correct": group.accuracy,
        "format": group.metrics["format"],
        "reward": _mean_of(rewards),
        "tokens": sum(lengths) / len(lengths) if len(lengths) > 1 else lengths[0],
    }


def _chance(row: Row) -> float:
    """Return the accuracy of a guess among the options of a question; 0 where it has none."""
    options = options_of(RewardInput.of_row(row, "", uid=row.uid))
    return 1 / len(options) if options else 0.0


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
        "cut_off": sum(cut) / len(cut),
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
