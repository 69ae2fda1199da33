r"""Is the answer the reference's formula? By math-verify.

Runs in a child process: comparing formulas may take for ever, and math-verify's own time-outs are
alarms, which do nothing outside a main thread.
"""

from __future__ import annotations

from megatron_longrl.rewards.answer import extract_answer, last_boxed
from megatron_longrl.rewards.sample import RewardError


def math_reward(response: str, answer: str) -> float:
    r"""1.0 when the response's formula equals the reference, else 0.0.

    The formula is that of the last ``\boxed{…}`` inside ``<answer>``, else the whole ``<answer>``,
    else that of the last ``\boxed{…}`` of the response.

    Raises:
        RewardError: the reference is not a formula.
    """
    from math_verify import verify

    right = _formulas(last_boxed(answer) or answer)
    if not right:
        raise RewardError(f"the reference answer {answer!r} is not a formula")
    element = extract_answer(response)
    given = last_boxed(response if element is None else element) or element
    if given is None:
        return 0.0
    return 1.0 if verify(right, _formulas(given), timeout_seconds=None) else 0.0


def _formulas(text: str) -> list[object]:
    from math_verify import parse

    dollars = text if "$" in text else f"${text}$"
    found: list[object] = parse(dollars, parsing_timeout=None)
    return found
