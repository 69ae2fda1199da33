"""Answers to a data set: validation within training, and the evaluate entry point."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from megatron_longrl.checkpoint.distributed import load_weights
from megatron_longrl.checkpoint.mapping import weight_stream
from megatron_longrl.config import Config
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row, load_rows
from megatron_longrl.errors import UserError
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rollout.build import build_engine
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.types import Group, SamplingSettings
from megatron_longrl.rollout.weights.stream import LiveWeights
from megatron_longrl.training.runtime import Runtime, build_runtime
from megatron_longrl.whole_file import write_whole

logger = logging.getLogger(__name__)

RATES = ("reward", "accuracy", "format", "response_length", "cut_off", "zero_advantage")
FURTHER = ("reward/", "accuracy_shuffled")
"""Beginnings of the metrics that not every run or group has."""


def answer(
    runtime: Runtime, engine: RolloutEngine, rewards: Rewards, rows: Sequence[Row]
) -> list[Group]:
    """Scored responses to each row, with the settings of evaluation."""
    config, sampling = runtime.config, evaluation_settings(runtime.config)
    groups: list[Group] = []
    size = max(config.eval_batch_size, 1)
    for first in range(0, len(rows), size):
        prompts: list[Prompt] = runtime.build_prompts(rows[first : first + size])
        prompts, media = runtime.encode(prompts, for_training=False)
        answered = engine.generate(prompts, media.embeddings, sampling, rewards.submit)
        rewards.collect(answered)
        groups += answered
    return groups


def evaluation_settings(config: Config) -> SamplingSettings:
    """How answers are drawn: with the same random numbers in every validation of a run, which no
    step of training uses."""
    return SamplingSettings(
        n=config.eval_group_size,
        max_tokens=config.eval_max_tokens or config.rollout_max_tokens,
        temperature=config.eval_temperature,
        top_p=config.eval_top_p,
        top_k=config.eval_top_k,
        min_p=config.eval_min_p,
        stop_strings=tuple(config.rollout_stop),
        seed=config.seed,
        step=-1,
    )


def rollout_metrics(runtime: Runtime, groups: Sequence[Group]) -> tuple[dict[str, float], int]:
    """Means over all responses of all replicas, and how many prompts were answered.

    Every reward of which the sum is made is there as ``reward/NAME``; responses without a reward do
    not count towards it. Accuracy also by kind of question, and by frames of the prompt's videos
    where they differ. Collective over the world.
    """
    mine = [_group_summary(group) for group in groups] if runtime.replica_rank == 0 else []
    parts = gather_objects(runtime.groups.control, mine)
    everyone = [entry for part in parts for entry in part]
    means = {f"{name}/mean": _mean(everyone, name) for name in RATES}
    further = {name for entry in everyone for name in entry if name.startswith(FURTHER)}
    means |= {name: _mean(everyone, name) for name in sorted(further)}
    return means | accuracy_by(everyone, "kind") | accuracy_by(everyone, "frames"), len(everyone)


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


def reward_counters(runtime: Runtime, rewards: Rewards) -> dict[str, float]:
    """What ``rewards.pop_counters()`` counted, over all replicas. Collective over the world."""
    mine = rewards.pop_counters()
    if runtime.replica_rank != 0:
        mine = dict.fromkeys(mine, 0)
    parts = gather_objects(runtime.groups.control, mine)
    return {name: sum(part[name] for part in parts) for name in mine}


def evaluate_checkpoint(config: Config) -> None:
    """Answer ``config.data`` with the weights of ``config.load`` and write ``config.output``."""
    assert config.load is not None, "the configuration's rules ask for --load"
    runtime = build_runtime(config, "evaluate")
    with together(runtime.groups.control):
        rows = load_rows(config.data, "heldout.jsonl")[: config.eval_samples]
    model = runtime.model
    load_weights(
        config.load,
        modules=model.modules,
        optimizers=model.optimizers,
        groups=runtime.groups,
        config=runtime.config,
    )
    with (
        closing(build_rewards(runtime.config, runtime.groups)) as rewards,
        closing(
            build_engine(runtime.config, runtime.tokenizer, runtime.groups, model.gpt)
        ) as engine,
    ):
        weights = LiveWeights(lambda: weight_stream(model.modules, runtime.config, runtime.groups))
        engine.update_weights(weights, version=0)
        groups = answer(runtime, engine, rewards, runtime.share(rows))
        _report(runtime, groups, reward_counters(runtime, rewards))


def _report(runtime: Runtime, groups: Sequence[Group], counters: dict[str, float]) -> None:
    """Gather all replicas' answers; the writer tells the accuracy and writes the file."""
    mine = [_record(group) for group in groups] if runtime.replica_rank == 0 else []
    skipped = runtime.media_metrics(None)["samples_skipped"]
    parts = gather_objects(runtime.groups.control, mine)
    answers = [record for part in parts for record in part]
    with together(runtime.groups.control):
        if not answers:
            raise UserError("no row could be answered: every video failed, see the warnings above")
        if runtime.is_writer:
            summary = summarize(answers) | {"samples_skipped": skipped, **counters}
            logger.info("accuracy %.4f of %d samples", summary["accuracy"], summary["samples"])
            if runtime.config.output is not None:
                content = json.dumps({**summary, "answers": answers}, indent=1)
                write_whole(Path(runtime.config.output), content)


def summarize(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its 95 % interval (Wilson), by kind of question, what always guessing one
    option would score, and the mean reward of the answers that have one."""
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


def _record(group: Group) -> dict[str, Any]:
    """Means over the responses to a question, and the only response or all of them."""
    row, responses = group.prompt.row, group.responses
    assert group.rewards is not None and group.valid is not None and group.correct is not None
    rewards = [
        float(reward) if known else None
        for reward, known in zip(group.rewards, group.valid, strict=True)
    ]
    answers = [
        {
            "response": response.text,
            "correct": float(group.correct[index]),
            "reward": rewards[index],
            "rewards": {name: scores[index] for name, scores in group.components.items()},
            "tokens": len(response.token_ids),
            "finish_reason": response.finish_reason,
        }
        for index, response in enumerate(responses)
    ]
    lengths = [len(response.token_ids) for response in responses]
    return {
        "problem_id": row.problem_id,
        "problem_type": row.problem_type,
        "answer": row.answer,
        **(answers[0] if len(answers) == 1 else {"responses": answers}),
        "correct": group.accuracy,
        "format": group.metrics["format"],
        "reward": _mean_of(rewards),
        "tokens": sum(lengths) / len(lengths) if len(lengths) > 1 else lengths[0],
    }


def _frames_bin(frames: int) -> str:
    """``"17-32"``: between powers of two, so that lengths make few groups."""
    most = 1 << max(frames - 1, 0).bit_length()
    return f"{most // 2 + 1}-{most}" if most > 2 else str(frames)


def _group_summary(group: Group) -> dict[str, Any]:
    assert group.rewards is not None
    lengths = torch.tensor([float(len(r.token_ids)) for r in group.responses])
    cut = [response.finish_reason == "length" for response in group.responses]
    rewards = group.rewards if group.valid is None else group.rewards[group.valid]
    spread = float(rewards.max() - rewards.min()) if len(rewards) else 0.0
    means = {f"reward/{name}": _mean_of(scores) for name, scores in group.components.items()}
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
    """Of the scores that there are; None where there is none."""
    there = [score for score in scores if score is not None]
    return sum(there) / len(there) if there else None


def _mean(entries: Sequence[Mapping[str, Any]], name: str) -> float:
    """Over the entries that have it; 0 where none has."""
    return _mean_of([entry.get(name) for entry in entries]) or 0.0
