"""Is the answer the reference's text?"""

from __future__ import annotations

from megatron_longrl.rewards.answer import extract_answer


def exact_reward(response: str, answer: str) -> float:
    """1.0 when the response's ``<answer>`` is the reference, but for case and spaces, else 0.0."""
    given = extract_answer(response)
    return 1.0 if given is not None and _normal(given) == _normal(answer) else 0.0


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
