"""The files of a record of rollouts, and what stands in them.

``<directory>/step_0000012-replica_0001.jsonl``: step 12 (of metrics.jsonl) of the second model
replica. The first line is about the step, every other one is a prompt with its responses. Files
are written aside and renamed, so that a file that is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.atomic_file import whole_file
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup
from megatron_longrl.regular_file import open_regular

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.data.tokenizer import Tokenizer

FORMAT = 1
"""Of the files; another one is refused."""

_WORDS = 2000  # of a vocabulary, that tell it from others

_NAME = re.compile(r"step_(\d+)-replica_(\d+)\.jsonl")

Line = dict[str, Any]


def record_file(directory: Path, step: int, replica: int) -> Path:
    """Where a replica's rollouts of a step (counted from 1) are."""
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
    with whole_file(path, durable=True) as aside, aside.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> tuple[Line, list[Line]]:
    """What a file says of its step, and its groups.

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


def group_line(scored: RolloutGroup, final: RolloutGroup, *, trained: bool, **place: Any) -> Line:
    """A group as it stands in a file.

    Args:
        scored: the group as the rewards left it.
        final: with what the algorithm has made of it: advantages, and rewards it added or took.
        trained: whether it is among the groups that are trained.
        place: what tells it from the step's other groups.
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
            {"path": video.path, "content": video.content, "frames": len(video.frame_indices)}
            for video in prompt.videos
        ],
        "metrics": scored.metrics,
        "baseline": final.baseline,
        "responses": [_response_line(scored, final, i) for i in range(len(scored.rollouts))],
    }


def _response_line(scored: RolloutGroup, final: RolloutGroup, index: int) -> Line:
    response, advantages = scored.rollouts[index], final.advantages

    def item(values: Tensor | None) -> float | None:
        return None if values is None else numbers(values[index : index + 1])[0]

    return {
        "text": response.text,
        "token_ids": response.token_ids.tolist(),
        "logprobs": numbers(response.logprobs),
        "finish_reason": response.finish_reason,
        "weight_version": response.weight_version,
        "earlier": response.earlier,
        "seconds": round(response.seconds, 4),
        "rewards": {name: scores[index] for name, scores in scored.components.items()},
        "scored": item(scored.rewards),
        "valid": None if scored.valid is None else bool(scored.valid[index]),
        "correct": item(scored.correct),
        "reward": item(final.rewards),
        "advantage": None if advantages is None else advantages[index].tolist(),
    }


def read_group(line: Line, prompt: Prompt) -> RolloutGroup:
    """The group of a line, as the rewards left it: what the algorithm makes of it comes anew."""
    responses = line["responses"]

    def gathered(name: str, dtype: torch.dtype) -> Tensor | None:
        values = [response[name] for response in responses]
        return None if None in values else torch.tensor(values, dtype=dtype)

    names = list(responses[0]["rewards"]) if responses else []
    return RolloutGroup(
        prompt,
        [
            Rollout(
                token_ids=torch.tensor(response["token_ids"], dtype=torch.long),
                logprobs=torch.tensor(response["logprobs"], dtype=torch.float32),
                text=response["text"],
                finish_reason=response["finish_reason"],
                weight_version=response["weight_version"],
                earlier=tuple(map(tuple, response["earlier"])),
                seconds=response["seconds"],
            )
            for response in responses
        ],
        rewards=gathered("scored", torch.float32),
        metrics=dict(line["metrics"]),
        valid=gathered("valid", torch.bool),
        correct=gathered("correct", torch.float32),
        components={name: [r["rewards"][name] for r in responses] for name in names},
    )


# ---- What a record is compared by ----


def prompt_hash(prompt: Prompt) -> str:
    """Of the prompt's tokens, positions, and media with their frames."""
    content = hashlib.sha256()
    for values in (prompt.token_ids, prompt.positions):
        content.update(values.long().contiguous().cpu().numpy().tobytes())
    for video in prompt.videos:
        content.update(video.key().encode())
    return content.hexdigest()[:32]


def tokenizer_line(tokenizer: Tokenizer) -> Line:
    """What tells a tokenizer from others, wherever and however its files are kept."""
    size = tokenizer.vocab_size
    words = [tokenizer.decode([token]) for token in range(0, size, max(size // _WORDS, 1))]
    content = hashlib.sha256("\0".join(words).encode(errors="replace"))
    return {"vocab_size": size, "eos_id": tokenizer.eos_id, "hash": content.hexdigest()[:32]}


def numbers(values: Sequence[float] | Tensor) -> list[float]:
    """float32 values in the nine digits that give them back exactly."""
    plain = values.tolist() if isinstance(values, Tensor) else values
    return [float(f"{value:.9g}") for value in plain]
