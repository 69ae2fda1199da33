"""Multiple choice: is the right option chosen, and no other?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron_longrl.data.answer import marked_answer, unmarked_answer
from megatron_longrl.rewards.letters import chosen_letter, letter_of_text, several_letters
from megatron_longrl.rewards.options import Options, same_text
from megatron_longrl.rewards.plain import plain
from megatron_longrl.rewards.result import RewardError
from megatron_longrl.rewards.stated_letter import stated_letter
from megatron_longrl.rewards.statements import stated

_LETTER_AND_TEXT = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:[.):\]]\s*|\s)(?!\w\.)(?=\S)")


def choice_reward(response: str, answer: str, options: Options | None = None) -> float:
    """1.0 when the response's answer chooses the option of the reference and no other, else 0.0.

    "A", "(A)", "a.", "A. a cup", "Option A", "The answer is A, because …", and the text of the
    option, where it is known, are the same choice. An answer that hedges ("A or B") is wrong. A
    reference with several letters ("A, C") asks for all of them. A response that marks no answer
    may state it in a longer text (:func:`~megatron_longrl.rewards.stated_letter.stated_letter`).

    Args:
        options: text by letter, of the question.

    Raises:
        RewardError: the reference names no choice.
    """
    options = options or {}
    right = reference_letter(answer, options)
    all_right = several_letters(answer) if right is None else None
    if right is None and all_right is None:
        raise RewardError(f"the reference answer {answer!r} names no choice")
    marked = marked_answer(response)
    given = unmarked_answer(response) if marked is None else marked
    if same_text(given, answer):
        return 1.0
    if right is None:
        chosen = stated(given, several_letters) if marked is None else several_letters(given)
        return float(chosen == all_right)
    read = stated_letter if marked is None else chosen_letter
    return float(read(given, _known(answer, right, options)) == right)


def reference_letter(answer: str, options: Options | None = None) -> str | None:
    """The letter that the reference of a multiple-choice question means, or None.

    "B", "Option B", "B. the left one", "B the left one" and the text of an option mean one.
    """
    options = options or {}
    named = letter_of_text(answer, options)
    if named is not None:
        return named
    letter = chosen_letter(answer, options)
    if letter is None and several_letters(answer) is None:
        match = _LETTER_AND_TEXT.match(plain(answer))
        letter = match[1].upper() if match and match[1].isupper() else None
    return letter


def _known(answer: str, letter: str, options: Options) -> Mapping[str, str]:
    """The options; where they are not known, the one that the reference names."""
    match = _LETTER_AND_TEXT.match(plain(answer))
    if letter in options or match is None or match[1].upper() != letter:
        return options
    return {**options, letter: plain(answer)[match.end() :]}
