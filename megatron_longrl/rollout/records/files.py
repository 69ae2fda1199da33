"""The files of a record of rollouts, and their contents.

``<directory>/step_0000012-replica_0001.jsonl``: step 12 (of metrics.jsonl) of the second model
replica. The first line is about the step, every other one is a prompt with its responses. Files
are written aside and renamed, so that a file that is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.atomic_file import atomic_write
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import (
    RewardedGroup,
    RewardedRollout,
    Rollout,
    RolloutGroup,
    RolloutKey,
    Segment,
)
from megatron_longrl.regular_file import open_regular

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.data.tokenizer import Tokenizer

FORMAT = 1
"""Version of the file format; other versions are refused."""

_WORDS = 2000  # of a vocabulary, that tell it from others

_NAME = re.compile(r"step_(\d+)-replica_(\d+)\.jsonl")

Line = dict[str, Any]


def record_file(directory: Path, step: int, replica: int) -> Path:
    """Return the path of the record of a replica's rollouts in a step (counted from 1)."""
    return directory / f"step_{step:07d}-replica_{replica:04d}.jsonl"


def recorded_files(directory: Path) -> dict[int, dict[int, Path]]:
    """Files by step and replica, in order."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(directory.glob("step_*-replica_*.jsonl")):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    return dict(sorted(found.items()))


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """One JSON object per line."""
    with atomic_write(path, durable=True) as aside, aside.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> tuple[Line, list[Line]]:
    """Read a record's header and its groups.

    Raises:
        UserError: it cannot be read, is broken, or of another format.
    """
    lines: list[Line] = []
    try:
        with open_regular(path) as file:
            for text in file:
                lines.append(json.loads(text))
        head, *groups = lines
        known = head["format"]
    except OSError as error:
        raise UserError(f"{path}: cannot read the rollouts: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path}:{len(lines) + 1}: not a record of rollouts; remove the file, or take another "
            "record"
        ) from None
    if known != FORMAT:
        raise UserError(f"{path} has format {known}, and this version reads format {FORMAT}")
    return head, groups


# ---- Groups ----


def group_line(
    scored: RolloutGroup,
    final: RolloutGroup,
    advantages: Mapping[RolloutKey, Tensor],
    *,
    trained: bool,
    **place: Any,
) -> Line:
    """A group as a line of a file.

    Args:
        scored: the group as the rewards left it; one that continues has no rewards.
        final: the group as the algorithm has left it, with the rewards that it added or took.
        advantages: [tokens] of each rollout that has advantages.
        trained: whether it is among the groups that are trained.
        place: the fields that tell the group from the others of its step.
    """
    prompt, row = scored.prompt, scored.prompt.row
    return {
        "uid": prompt.uid,
        **place,
        "trained": trained,
        "problem_id": row.problem_id,
        "problem_type": row.problem_type,
        "source": row.source,
        "question": row.problem,
        "answer": row.answer,
        "prompt_tokens": len(prompt.token_ids),
        "prompt_hash": prompt_hash(prompt),
        "media": [
            {
                "path": spec.path,
                "content": spec.content,
                spec.counted_as.partition("/")[0]: spec.num_units * spec.count_per_unit,
            }
            for spec in prompt.media
        ],
        "metrics": scored.metrics if isinstance(scored, RewardedGroup) else {},
        "baseline": final.baseline if isinstance(final, RewardedGroup) else None,
        "responses": [
            _rollout_line(rollout, last, advantages.get(rollout.key))
            for rollout, last in zip(scored.rollouts, final.rollouts, strict=True)
        ],
    }


def _rollout_line(scored: Rollout, final: Rollout, advantages: Tensor | None) -> Line:
    *earlier, last = scored.segments
    return {
        "text": scored.text,
        "token_ids": scored.token_ids.tolist(),
        "logprobs": numbers(scored.logprobs),
        "finish_reason": scored.finish_reason,
        "weight_version": last.weight_version,
        "earlier": [(segment.num_tokens, segment.weight_version) for segment in earlier],
        "seconds": round(scored.seconds, 4),
        **_reward_line(scored),
        "reward": numbers([final.reward])[0] if isinstance(final, RewardedRollout) else None,
        "advantage": None if advantages is None else advantages.tolist(),
    }


def _reward_line(rollout: Rollout) -> Line:
    """Return a rollout's rewards as fields of its line; a rollout that continues has none."""
    if not isinstance(rollout, RewardedRollout):
        return {"rewards": {}, "scored": None, "valid": None, "correct": None}
    scored, correct = numbers(torch.tensor([rollout.reward, rollout.correct]))
    return {
        "rewards": rollout.reward_terms,
        "scored": scored,
        "valid": rollout.valid,
        "correct": correct,
    }


def read_group(line: Line, prompt: Prompt, group_id: str) -> RolloutGroup:
    """The group of a line, as the rewards left it: the terms of the algorithm are computed anew.

    A group that went on in a later step has no rewards.
    """
    entries = line["responses"]
    rollouts = [_read_rollout(entry, prompt, group_id, i) for i, entry in enumerate(entries)]
    group = RolloutGroup(group_id, prompt, rollouts)
    if any(entry["scored"] is None for entry in entries):
        return group
    rewarded = [
        RewardedRollout.of(
            rollout,
            reward=entry["scored"],
            valid=entry["valid"],
            correct=entry["correct"],
            reward_terms=entry["rewards"],
        )
        for rollout, entry in zip(rollouts, entries, strict=True)
    ]
    return RewardedGroup.of(group, rewarded, line["metrics"])


def _read_rollout(entry: Line, prompt: Prompt, group_id: str, index: int) -> Rollout:
    earlier = [Segment(tokens, version) for tokens, version in entry["earlier"]]
    last = len(entry["token_ids"]) - sum(segment.num_tokens for segment in earlier)
    return Rollout(
        group_id=group_id,
        index=index,
        token_ids=torch.tensor(entry["token_ids"], dtype=torch.long),
        logprobs=torch.tensor(entry["logprobs"], dtype=torch.float32),
        text=entry["text"],
        reward_text=prompt.opening + entry["text"],
        finish_reason=entry["finish_reason"],
        segments=(*earlier, Segment(last, entry["weight_version"])),
        seconds=entry["seconds"],
    )


# ---- What a record is compared by ----


def prompt_hash(prompt: Prompt) -> str:
    """Return the hash of a prompt's tokens, positions, and media with their frames."""
    content = hashlib.sha256()
    for values in (prompt.token_ids, prompt.positions):
        content.update(values.long().contiguous().cpu().numpy().tobytes())
    for spec in prompt.media:
        content.update(spec.key().encode())
    return content.hexdigest()[:32]


def tokenizer_line(tokenizer: Tokenizer) -> Line:
    """Describe a tokenizer such that others differ, wherever and however its files are stored."""
    size = tokenizer.vocab_size
    words = [tokenizer.decode([token]) for token in range(0, size, max(size // _WORDS, 1))]
    content = hashlib.sha256("\0".join(words).encode(errors="replace"))
    return {"vocab_size": size, "eos_id": tokenizer.eos_id, "hash": content.hexdigest()[:32]}


def numbers(values: Sequence[float] | Tensor) -> list[float]:
    """float32 values in the nine digits that give them back exactly."""
    plain = values.tolist() if isinstance(values, Tensor) else values
    return [float(f"{value:.9g}") for value in plain]
