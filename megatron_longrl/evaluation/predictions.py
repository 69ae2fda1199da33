"""Scores of prediction files: responses to the rows of a benchmark that anybody wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.data.answer import END_TOKENS, without_end_token
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import DataError
from megatron_longrl.evaluation.benchmark import BENCHMARK, find_benchmark
from megatron_longrl.evaluation.records import record_of_response, unanswered
from megatron_longrl.evaluation.summary import summarize
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.registry import ACCURACY
from megatron_longrl.rewards.scorer import Scorer

_FORMAT = "format"


def score_predictions(
    rows: Sequence[Row], responses: Mapping[int, str], settings: RewardSection
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of responses to a benchmark's rows, and the record of every row.

    Args:
        rows: the rows, at least one, all of one benchmark.
        responses: the responses by the number of the row. A row without one counts as wrong.
        settings: the settings of the judge, if one is to be asked.

    Raises:
        UserError: the judge's prompt cannot be used.
    """
    scorer = Scorer(settings)
    try:
        inputs = {
            number: RewardInput.of_row(
                rows[number], without_end_token(text, END_TOKENS), uid=rows[number].uid
            )
            for number, text in responses.items()
        }
        begun = {
            number: [scorer.score(name, given) for name in (ACCURACY, _FORMAT)]
            for number, given in inputs.items()
        }
        results = {
            number: [scorer.result(work)[0] for work in works] for number, works in begun.items()
        }
    finally:
        scorer.close()
    records = []
    for number, row in enumerate(rows):
        if number not in results:
            records.append(unanswered(row, "there is no prediction"))
            continue
        right, form = results[number]
        records.append(
            record_of_response(row, responses[number], right.score, form.score or 0.0, right.error)
        )
    name = str(rows[0].metadata[BENCHMARK])
    return summarize(records, (name, find_benchmark(name))), records


def by_problem_id(
    rows: Sequence[Row], predictions: Sequence[Mapping[str, Any]], source: str
) -> dict[int, str]:
    """Responses by the number of their row: the row of the same ``problem_id``, or, where no
    prediction has one, the row of the same number.

    Args:
        predictions: each with a text ``response``.
        source: the origin of the predictions, for messages.

    Raises:
        DataError: one belongs to no row, or two belong to the same, or there are fewer without ids.
    """
    if not any("problem_id" in prediction for prediction in predictions):
        if len(predictions) != len(rows):
            raise DataError(
                f"{source}: {len(predictions)} responses for the {len(rows)} rows: write one for "
                "each row in the order of the data, or give each its 'problem_id'"
            )
        return {number: str(found["response"]) for number, found in enumerate(predictions)}
    places = {row.problem_id: number for number, row in enumerate(rows)}
    responses: dict[int, str] = {}
    for number, found in enumerate(predictions, 1):
        if "problem_id" not in found:
            raise DataError(
                f"{source}: response {number} has no 'problem_id', and others have one: give it to "
                "each"
            )
        name = str(found["problem_id"])
        if name not in places:
            raise DataError(
                f"{source}: response {number}: the benchmark has no row with the problem_id "
                f"{name!r}, its rows have ids such as {rows[0].problem_id!r}"
            )
        if places[name] in responses:
            raise DataError(f"{source}: two responses to the problem_id {name!r}: keep one")
        responses[places[name]] = str(found["response"])
    return responses
