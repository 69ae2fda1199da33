"""Tags in a row's answer and reasoning, which are kept without them."""

from __future__ import annotations

import re

from megatron_longrl.data.answer import final_text

_TAG = re.compile(r"</?(?:think|answer)>")
_ANSWER = re.compile(r"<answer>.*?</answer>", flags=re.DOTALL)
_THOUGHT = re.compile(r"</?think>")


def clean_answer(text: str) -> str:
    """The text of the last ``<answer>`` element, as of a response; without one, all that follows
    the thought.

    Raises:
        ValueError: a tag is left, so that no response could ever equal the answer.
    """
    answer = final_text(text)
    if _TAG.search(answer):
        raise ValueError("field 'answer' holds a tag that is not closed or not opened")
    return answer


def clean_reasoning(text: str) -> str:
    """The thought alone: without its tags, and without ``<answer>`` elements.

    Raises:
        ValueError: a tag is left.
    """
    thought = _THOUGHT.sub("", _ANSWER.sub("", text)).strip()
    if _TAG.search(thought):
        raise ValueError("field 'reasoning' holds an <answer> tag that is not closed or not opened")
    return thought
