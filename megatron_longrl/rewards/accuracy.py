"""Is the answer right? The meaning of "right" depends on the row."""

from __future__ import annotations

import re

from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.letters import chosen_letter, single_letter
from megatron_longrl.rewards.options import options_of
from megatron_longrl.rewards.ordering import is_order
from megatron_longrl.rewards.result import RewardError
from megatron_longrl.rewards.temporal import segments

KINDS = (
    "choice",
    "exact",
    "numeric",
    "math",
    "temporal_iou",
    "ordering",
    "ordering_exact",
    "rouge",
    "judge",
)
"""Values that a row's field ``reward`` may have."""

_BY_WORD = {
    **{kind.replace("_", " "): kind for kind in KINDS},
    **dict.fromkeys(
        ("multiple choice", "multi choice", "multichoice", "multiple choices"), "choice"
    ),
    **dict.fromkeys(("single choice", "mcq", "mcqa", "mc", "multiple choice question"), "choice"),
    **dict.fromkeys(("numerical", "number", "integer", "float", "regression"), "numeric"),
    **dict.fromkeys(("mathematics", "maths"), "math"),
    **dict.fromkeys(("temporal grounding", "moment retrieval", "video grounding"), "temporal_iou"),
    **dict.fromkeys(("order", "sorting", "temporal ordering", "temporal order"), "ordering"),
}
"""Kind by what the fields of data sets say; spaces stand for hyphens and underscores, too."""


def kind_of(sample: RewardInput) -> str:
    """The reward that decides whether a sample is right.

    The row's field ``reward`` names it. Without it, these say it, the first that does:

    1. the field ``answer_type``;
    2. ``problem_type``. It may also be a topic ("ordering", "math") of multiple-choice questions: a
       reference that is a letter is a choice then, and one that is no order or no segment of time
       is a text;
    3. the reference, which is a choice where it is one letter ("B", "(B)") or a letter with a text
       ("B. the left one"), or one of the options of the question;

    else the answer is exact text.

    Raises:
        RewardError: ``reward`` names none.
    """
    named = sample.metadata.get("reward")
    if named is not None:
        if named not in KINDS:
            raise RewardError(
                f"the row's field 'reward' is {named!r}, which is none of {', '.join(KINDS)}"
            )
        return str(named)
    kind = _BY_WORD.get(_words(sample.metadata.get("answer_type")))
    if kind is not None:
        return kind
    kind = _BY_WORD.get(_words(sample.problem_type))
    if kind in ("choice", "exact", "rouge"):
        return kind
    if kind is None:
        return "choice" if _is_choice(sample) else "exact"
    if single_letter(sample.answer) is not None:
        return "choice"
    if kind == "temporal_iou" and not segments(sample.answer):
        return "exact"
    if kind in ("ordering", "ordering_exact") and not is_order(sample.answer):
        return "exact"
    return kind


def _words(value: object) -> str:
    return " ".join(re.split(r"[\s_-]+", str(value).strip().casefold()))


def _is_choice(sample: RewardInput) -> bool:
    options = options_of(sample)
    letter = single_letter(sample.answer)
    if letter is not None and (not options or letter in options or len(sample.answer.strip()) < 4):
        return True
    return bool(options) and chosen_letter(sample.answer, options) in options
