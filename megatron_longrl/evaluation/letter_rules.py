"""Published rules by which benchmarks read the letter of an option from an answer.

They are crude on purpose: a score is comparable with published ones only under the same rule. The
rule of this package itself is :func:`~megatron_longrl.rewards.choice.choice_reward`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PHRASES = (
    *(
        f"{the}{kind}{noun} is"
        for noun, kinds in (
            ("answer", ("", "correct ", "best ")),
            ("option", ("correct ", "best ")),
            ("choice", ("", "correct ")),
        )
        for kind in kinds
        for the in ("the ", "")
    ),
    *("my answer is", "my choice is", "i choose", "i select", "i pick"),
    # Korean, Chinese and Japanese: option, the answer is.
    *("\uc635\uc158", "\uc815\ub2f5\uc740", "\ub2f5\uc740", "\ub2f5:"),
    *("\u7b54\u6848\u662f", "\u7b54\u6848\u4e3a", "\u9009", "\u7b54\u3048\u306f"),
)
_SHAPES = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
"""The forms in which an option may be named, and their weights; a start counts 10, an end 9, and a
phrase that announces it 7."""

_LEADS = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)


def ranked_letter(answer: str, letters: str) -> str:
    """The letter that is named in the most telling way, the last one where several are.

    lmms-eval, tasks/_task_utils/mcq_extract.py: of Video-MME, MLVU, LVBench and Video-MMMU.

    Returns:
        "" where there is none.
    """
    text = _without(answer.strip(), ",.!?;:'\"")
    core, padded = text.strip(), f" {text} "
    lowered = padded.lower()
    announced = [place + len(phrase) for phrase in _PHRASES if (place := lowered.find(phrase)) >= 0]
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        if core.startswith(letter) and not core[1:2].isalpha():
            found.append((10, 0, letter))
        if core.endswith(letter) and not core[-2:-1].isalpha():
            found.append((9, len(padded) - 1, letter))
        found += [(7, padded.find(letter, place), letter) for place in announced]
        found += [(rank, padded.rfind(shape.format(letter)), letter) for shape, rank in _SHAPES]
    found = [named for named in found if named[1] >= 0]
    if not found and core:
        found = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(found, key=lambda named: named[:2])[2] if found else ""


def mmmu_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter in brackets, before a space or before a full stop; else the option whose text a
    longer answer holds. The last one counts where several are named.

    MMMU's rule, in lmms-eval's tasks/nextqa/utils.py.

    Returns:
        None where there is none, and the rule draws lots.
    """
    text = f" {_without(answer, _MMMU_MARKS)} "
    letter = _last_named(text, options, (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")))
    if letter is None and len(text.split()) > 5:
        lowered = text.lower()
        held = {key: option.lower() for key, option in options.items() if option.lower() in lowered}
        return _last(list(held), {k: lowered.rfind(o) for k, o in held.items()}) if held else None
    return letter


def mmau_letter(answer: str, letters: Sequence[str]) -> str | None:
    """The letter in brackets, between spaces or before a full stop; of several the last one between
    spaces.

    lmms-eval, tasks/mmau/utils.py.

    Returns:
        None where there is none, and the rule draws lots.
    """
    text = f" {_without(answer, _MMMU_MARKS)} "
    return _last_named(text, letters, (("({})", " {} "), (" {} ", " {} "), ("{}.", " {} ")))


_MMMU_MARKS = ",.!?;:'"


def _last_named(
    text: str, letters: Sequence[str] | Mapping[str, str], shapes: Sequence[tuple[str, str]]
) -> str | None:
    """The letter that has the first shape that any has; of several the one whose other shape is the
    last in the text."""
    for shape, place in shapes:
        named = [letter for letter in letters if shape.format(letter) in text]
        if named:
            return _last(named, {letter: text.rfind(place.format(letter)) for letter in named})
    return None


def _last(names: Sequence[str], places: Mapping[str, int]) -> str:
    """The name that has the largest place, the first of equals."""
    return max(names, key=places.__getitem__)


def first_capital(answer: str, letters: str = "ABCDE") -> str | None:
    """The first of these letters anywhere, once the usual beginnings of an answer are removed.

    lmms-eval, tasks/longvideobench/utils.py.

    Returns:
        None where there is none, and the rule draws lots.
    """
    text = answer.strip()
    for lead in _LEADS:
        text = text.replace(lead, "")
    return next((character for character in text if character in letters), None)


def first_of(answer: str, letters: str) -> str | None:
    """The first of these letters, in their own order, that is anywhere in an answer.

    VideoNIAH, evaluation/eval.py, takes the whole text where there is none.
    """
    return next((letter for letter in letters if letter in answer), None)


def standing_letter(answer: str, letters: str = "A-D") -> str | None:
    """The first of these letters that is a word by itself.

    lmms-eval, tasks/perceptiontest/val/utils.py.
    """
    match = re.search(rf"\b([{letters}])\b", answer.strip())
    return match[1] if match else None


def leading_letter(answer: str, letters: str = "A-D") -> str | None:
    """The letter, of either case, with which an answer begins.

    Daily-Omni, test_model/Qwen2.5-Omni/testmodel.py.
    """
    match = re.match(rf"\s*([{letters}])", answer, re.IGNORECASE)
    return match[1].upper() if match else None


def _without(text: str, marks: str) -> str:
    """Strip one mark after the other from both ends."""
    for mark in marks:
        text = text.strip(mark)
    return text
