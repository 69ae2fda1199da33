"""The program ``longrl evaluate`` for flow-matching models: rewards of held-out prompts."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.config import Config
from megatron_longrl.data.rows import load_rows
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rl.flow.drawing import Drawer
from megatron_longrl.rl.flow.picture_rewards import PictureRewards
from megatron_longrl.training.run import build_run


def evaluate(config: Config) -> None:
    """Draw ``--eval-group-size`` pictures of every prompt of ``--data``, score them, and write
    ``--output``."""
    drawer = Drawer(build_run(config, "evaluate"))
    groups = drawer.run.groups
    with raise_on_all_ranks(groups.gloo_group):
        rows = load_rows(config.evaluation.data, "heldout.jsonl", answers=False)
        rows = rows[: config.evaluation.samples]
    scores: dict[int, list[float | None]] = {number: [] for number in drawer.mine(len(rows))}
    with closing(PictureRewards(config.reward, groups)) as rewards:
        prompts = [row.problem for row in rows]
        for names, pictures in drawer.draw(prompts, config.evaluation.group_size, "evaluate"):
            found = rewards.score([rows[number] for number, _ in names], pictures)
            for (number, _), reward in zip(names, found, strict=True):
                scores[number].append(reward)
    records = [
        {
            "problem_id": rows[number].problem_id,
            "problem": rows[number].problem,
            "answer": rows[number].answer,
            "reward": _mean(found),
            "responses": [{"reward": reward} for reward in found],
        }
        for number, found in scores.items()
    ]
    is_first = groups.replica_gloo_group.rank() == 0
    parts = gather_objects(groups.gloo_group, records if is_first else [])
    answers = [record for part in parts for record in part]
    with raise_on_all_ranks(groups.gloo_group):
        if drawer.run.is_writer:
            _report(answers, config.evaluation.output)


def _report(answers: list[dict[str, Any]], output: str | None) -> None:
    every = [one["reward"] for record in answers for one in record["responses"]]
    summary = {
        "reward": _mean([record["reward"] for record in answers]),
        "samples": len(answers),
        "pictures": len(every),
        "rewards_failed": sum(reward is None for reward in every),
    }
    reward = "none" if summary["reward"] is None else f"{summary['reward']:.4f}"
    sys.stdout.write(
        f"reward {reward}, {len(every)} pictures of {len(answers)} prompts, without a reward: "
        f"{summary['rewards_failed']}\n"
    )
    if output is not None:
        content = json.dumps({**summary, "answers": answers}, indent=1)
        atomic_write_text(Path(output), content)


def _mean(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
