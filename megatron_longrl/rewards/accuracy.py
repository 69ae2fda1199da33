"""Is the answer right? What that means depends on the row."""

from __future__ import annotations

from megatron_longrl.rewards.choice import reference_letter
from megatron_longrl.rewards.sample import RewardError, Sample

KINDS = (
    "choice",
    "exact",
    "numeric",
    "math",
    "temporal_iou",
    "ordering",
    "ordering_exact",
    "rouge",
)
"""What a row's field ``reward`` may say."""

_ANSWER_TYPES = {
    **{kind: kind for kind in KINDS},
    **dict.fromkeys(("multiple choice", "multiple-choice", "multiple_choice", "mcq"), "choice"),
    **dict.fromkeys(("numerical", "number", "integer", "float", "regression"), "numeric"),
}
_PROBLEM_TYPES = {
    word: kind for word, kind in _ANSWER_TYPES.items() if kind in ("numeric", "math", "exact")
}
"""Kind by what the fields of data sets say."""


def kind_of(sample: Sample) -> str:
    """The reward that decides whether a sample is right.

    The row's field ``reward`` names it. Without it, these say it, the first that does: the field
    ``answer_type``; a reference that is a letter ("B", "(B)", "B. the left one": multiple choice);
    ``problem_type``. Else the answer is exact text.

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
    answer_type = _ANSWER_TYPES.get(str(sample.metadata.get("answer_type")).casefold())
    if answer_type is not None:
        return answer_type
    if reference_letter(sample.answer) is not None:
        return "choice"
    return _PROBLEM_TYPES.get(sample.problem_type.casefold(), "exact")
