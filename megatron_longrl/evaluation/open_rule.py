"""MMMU's rule for open questions: the ends of sentences and the numbers of an answer, each compared
with the reference; in lmms-eval's tasks/videommmu/utils.py."""

from __future__ import annotations

import re

_BEFORE_THE_ANSWER = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are "),
    *("in total ", "total ", "identify ", "recognize ", "calculated as ", "counted as "),
    *("measured as ", "observed as ", "concluded as ", "found to be ", "equals "),
    *("determined to be ", "number of ", "value is ", "adds up to ", "have ", "has "),
)
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def open_answer_is_right(answer: str, reference: str) -> bool:
    """Whether an answer holds the text of the reference, or says its number."""
    ends = _ends(answer)
    said = {form for end in ends for form in _forms(end)}
    said |= {form for end in ends for number in _numbers(end) for form in _forms(number)}
    wanted = _forms(reference)
    return any(
        any(isinstance(form, str) and form in part for form in wanted)
        if isinstance(part, str)
        else part in wanted
        for part in said
    )


def _ends(answer: str) -> list[str]:
    """The text behind the last word that announces an answer, of every line; all without one."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    ends = []
    for number, line in enumerate(lines):
        words = (*_BEFORE_THE_ANSWER, *(["="] if number == len(lines) - 1 else []))
        shortest = ""
        for tail in (line.rsplit(word, 1)[1].strip() for word in words if word in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            ends.append(shortest)
    return ends or [whole]


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]


def _forms(text: str) -> list[str | float]:
    """A number, rounded to two decimals, or the text in small letters; a single character needs a
    space at one of its sides."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        pass
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
