r"""Extraction of the answer from a response: after the thought, in ``<answer>…</answer>`` or in
``\boxed{…}``; without either it is all the text after the thought.

Text between ``<think>`` and ``</think>`` is never the answer, and neither is the text behind a
``<think>`` that is not closed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

END_OF_TURN = "<|im_end|>"  # data/tokenizer.py's, which imports too much for a child
END_TOKENS = (
    END_OF_TURN,
    *("<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>", "<|end|>"),
    *("<end_of_turn>", "<eos>", "<|return|>", "<｜end▁of▁sentence｜>"),
)
"""Tokens that end the responses of common models, for texts whose tokenizer is not known."""

_ANSWER, _CLOSED = "<answer>", "</answer>"
_THINK, _THOUGHT = "<think>", "</think>"
_BEGUN = re.compile(r"</?answer>|\\f?boxed\s*\{")
_BRACE = re.compile(r"\\\\(?!f?boxed)|\\f?boxed\s*\{|\\[{}]|[{}]")


def without_end_token(text: str, end_tokens: Sequence[str] = (END_OF_TURN,)) -> str:
    """Return the response without the token that ends it.

    Args:
        end_tokens: texts of the tokens at which generation stops. One of them is removed, where the
            response ends with it.
    """
    ends = [token for token in end_tokens if token and text.endswith(token)]
    return text.removesuffix(max(ends, key=len)) if ends else text


def after_thought(response: str) -> str:
    """Return the text after the thought: behind the last ``</think>``, and before a ``<think>``
    that is not closed."""
    return response.rpartition(_THOUGHT)[2].partition(_THINK)[0]


def extract_answer(response: str) -> str | None:
    """The text of the last ``<answer>`` element after the thought, or None."""
    spoken = after_thought(response)
    start = spoken.rfind(_ANSWER, 0, max(spoken.rfind(_CLOSED), 0))
    if start < 0:
        return None
    start += len(_ANSWER)
    return spoken[start : spoken.index(_CLOSED, start)].strip()


def marked_answer(response: str) -> str | None:
    r"""Return the answer that a response marks: the last ``<answer>`` element after the thought,
    or, where there is none, the last ``\boxed{…}`` there; None without either."""
    answer = extract_answer(response)
    return last_boxed(after_thought(response)) if answer is None else answer


def final_text(response: str) -> str:
    """The last ``<answer>`` element; where there is none, all that follows the thought."""
    answer = extract_answer(response)
    return after_thought(response).strip() if answer is None else answer


def unmarked_answer(response: str) -> str:
    r"""All that follows the thought, for a response that marks no answer; empty where an
    ``<answer>`` or a ``\boxed{`` is begun and not ended, as in a response that was cut off."""
    spoken = after_thought(response).strip()
    return "" if _BEGUN.search(spoken) else spoken


def last_boxed(text: str) -> str | None:
    r"""The inside of the last ``\boxed{…}``, or None."""
    found = boxes(text)
    return found[-1] if found else None


def boxes(text: str) -> list[str]:
    r"""The insides of all ``\boxed{…}`` that are in no other one, in their order."""
    found: list[tuple[int, int]] = []
    starts: list[int | None] = []  # of the open braces; None: not of a box
    for brace in _BRACE.finditer(text):
        if brace[0].endswith("{") and brace[0] != r"\{":
            starts.append(brace.end() if brace[0] != "{" else None)
        elif brace[0] == "}" and starts and (start := starts.pop()) is not None:
            while found and found[-1][0] > start:
                found.pop()
            found.append((start, brace.start()))
    return [text[start:end].strip() for start, end in found]
