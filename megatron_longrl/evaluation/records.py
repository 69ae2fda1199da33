"""The records of answered questions: what an evaluation writes for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_longrl.data.answer import END_TOKENS, final_text, without_end_token
from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.benchmark import CATEGORIES, GROUP, benchmark_of
from megatron_longrl.evaluation.well_formed import is_well_formed
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.experience.rollouts import RewardedGroup
from megatron_longrl.rewards.options import options_of

JUDGED_RIGHT = 0.5
"""The least score by which a judge takes an answer for right under a benchmark's rule."""


def record_of(group: RewardedGroup) -> dict[str, Any]:
    """Means over the responses to a question, and the only response or all of them."""
    row = group.prompt.row
    answers = []
    for rollout in group.rollouts:
        answer = {
            "response": rollout.text,
            "correct": rollout.correct,
            "reward": rollout.reward if rollout.valid else None,
            "rewards": dict(rollout.reward_terms),
            "tokens": len(rollout.token_ids),
            "finish_reason": rollout.finish_reason,
        }
        accuracy = rollout.correct if rollout.unscored is None else None
        answers.append(answer | _read(row, without_end_token(rollout.reward_text), accuracy))
        if rollout.unscored is not None:
            answers[-1]["unscored"] = rollout.unscored
    return _record(row, answers, group.metrics["format"])


def record_of_response(
    row: Row, response: str, accuracy: float | None, form: float, error: str | None
) -> dict[str, Any]:
    """The record of a response that anybody wrote.

    Args:
        accuracy: None where it could not be computed.
        form: the score of the reward ``format``.
        error: the reason why there is no accuracy.
    """
    answer: dict[str, Any] = {"response": response, "correct": accuracy or 0.0, "reward": None}
    answer |= _read(row, without_end_token(response, END_TOKENS), accuracy)
    if accuracy is None:
        answer["unscored"] = error or "no score"
    return _record(row, [answer], form)


def unanswered(row: Row, reason: str) -> dict[str, Any]:
    """The record of a row that has no answer; it counts as wrong."""
    answer: dict[str, Any] = {"response": None, "correct": 0.0, "reward": None, "unscored": reason}
    answer["well_formed"] = 0.0
    if benchmark_of(row.metadata) is not None:
        answer["benchmark_correct"] = 0.0
    return _record(row, [answer], 0.0)


def _read(row: Row, response: str, accuracy: float | None) -> dict[str, Any]:
    """Whether an answer can be read, and, for a row of a benchmark, its score by the benchmark's
    rule.

    Args:
        accuracy: the accuracy by this package's rule, which is a judge's where the benchmark asks
            for one.
    """
    sample = RewardInput.of_row(row, response, uid=row.uid)
    found: dict[str, Any] = {"well_formed": float(is_well_formed(sample))}
    benchmark = benchmark_of(row.metadata)
    if benchmark is None:
        return found
    score = benchmark.score(RewardInput.of_row(row, final_text(response), uid=row.uid))
    if score is None:
        score = float((accuracy or 0.0) >= JUDGED_RIGHT)
    return found | {"benchmark_correct": score}


def _record(row: Row, answers: Sequence[Mapping[str, Any]], form: float) -> dict[str, Any]:
    """The fields of the row, with means over its answers."""
    record: dict[str, Any] = {
        "problem_id": row.problem_id,
        "problem_type": row.problem_type,
        "problem": row.problem,
        "media": [str(medium.path) for medium in row.media],
        "answer": row.answer,
        "chance": _chance(row),
        **(answers[0] if len(answers) == 1 else {"responses": list(answers)}),
        "correct": _mean([answer["correct"] for answer in answers]),
        "format": form,
        "reward": _mean([answer["reward"] for answer in answers]),
    }
    for name in ("tokens", "well_formed", "benchmark_correct"):
        values = [answer[name] for answer in answers if name in answer]
        if values:
            record[name] = values[0] if len(values) == 1 else sum(values) / len(values)
    reasons = [answer["unscored"] for answer in answers if "unscored" in answer]
    if reasons:
        record["unscored"] = reasons[0]
    for name in (CATEGORIES, GROUP):
        if name in row.metadata:
            record[name] = row.metadata[name]
    return record


def _chance(row: Row) -> float:
    """Return the accuracy of a guess among the options of a question; 0 where it has none."""
    options = options_of(RewardInput.of_row(row, "", uid=row.uid))
    return 1 / len(options) if options else 0.0


def _mean(scores: Sequence[float | None]) -> float | None:
    """Return the mean of the scores that are not None; None where there is none."""
    there = [score for score in scores if score is not None]
    return sum(there) / len(there) if there else None
