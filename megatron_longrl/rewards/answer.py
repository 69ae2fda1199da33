r"""Where the answer stands in a response: ``<answer>…</answer>``, ``\boxed{…}``."""

from __future__ import annotations

import re

_END_OF_TURN = "<|im_end|>"  # data/tokenizer.py's, which imports too much for a child
_OPEN, _CLOSE = "<answer>", "</answer>"
_BRACE = re.compile(r"\\boxed\{|[{}]")


def visible(text: str) -> str:
    """The response without the end-of-turn token that closes it."""
    return text.removesuffix(_END_OF_TURN)


def extract_answer(response: str) -> str | None:
    """The text of the last ``<answer>`` element, or None."""
    start = response.rfind(_OPEN, 0, max(response.rfind(_CLOSE), 0))
    if start < 0:
        return None
    start += len(_OPEN)
    return response[start : response.index(_CLOSE, start)].strip()


def final_text(response: str) -> str:
    """The last ``<answer>`` element; where there is none, all that follows the thought."""
    answer = extract_answer(response)
    return response.rpartition("</think>")[2].strip() if answer is None else answer


def last_boxed(text: str) -> str | None:
    r"""The inside of the ``\boxed{…}`` that is closed last, or None."""
    inside = None
    starts: list[int | None] = []  # of the open braces; None: not of a box
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            starts.append(brace.end() if brace[0] != "{" else None)
        elif starts and (start := starts.pop()) is not None:
            inside = text[start : brace.start()].strip()
    return inside
