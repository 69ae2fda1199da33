"""The option that a free text chooses: "The man sits down. So the answer is B."."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_longrl.rewards.letters import (
    is_hedged,
    is_word,
    letter_cues,
    letter_of_text,
    names_another,
    other_letters,
    undressed,
    without_option,
)
from megatron_longrl.rewards.options import Options, normal
from megatron_longrl.rewards.statements import (
    MOST,
    is_answer_taken_back,
    is_called_wrong,
    is_no_statement,
    is_unsure,
    sentence_around,
    sentences_of,
    stated,
    without_reason,
)

_LETTER = re.compile(
    r"\s*(?i:(?:the\s+)?(?:option|choice|letter)\s+)?"
    r"(?:[(\[{<\"']+\s*([A-Za-z])\s*[)\]}>\"']+|([A-Z])(?![\w'-])|([a-z])(?=\s*[).:]|\s*$))"
)
"""Pattern of the beginning of a line or sentence that may be nothing but a choice."""

_BEHIND = re.compile(  # A letter that is no word of a sentence.
    r"\s*$|\s*[.:,;)!\n]|\s+[\u2013\u2014(-]|\s+(?i:because|since|as|due|rather|not)\b"
)
_THEREFORE = re.compile(r"\s*(?i:(?:therefore|thus|so|hence)\b\s*,?\s*)")
_LONGEST_OPTION = 500
_INITIALS = re.compile(r"\s*[A-Z]\.\s?[A-Z]\.")
_HEADING = re.compile(r"[\s\u2022-]*[(\[]?(?i:option\s+)?([A-Z])[.):\]]+\s*(?=\S)")
_ANOTHER = re.compile(r"(?i:\b(?:options?|choices?|answers?|or|and)\s+)[(\"']*([A-Z])(?![\w'-])")
_SUBJECT = re.compile(
    r"(?<![\w'.])([A-Z])\s+(?=(?i:is|fits?|match(?:es)?|seems|works?|describes?)\b)"
)
_TOO = re.compile(
    r"(?i:\b(?:also|possible|possibly|could|may|might|alternatively|maybe|perhaps|equally|as\s+well"
    r"|either|both|actually|acceptable|plausible|valid|likely|too|better|fits?|match(?:es)?|correct|right|what\s+(?:happens|is\s+shown))\b)"
)
_DENIED = re.compile(
    r"(?i:\b(?:not|no|none|neither|never|wrong|incorrect|false|rather|instead|eliminated?|excluded?"
    r"|ruled?|unlike|unlikely|contradicts?|lacks?|without|cannot)\b|n't\b)"
)

Vote = tuple[str | None, int]
"""The letter that a part of a text chooses, None where the part hedges; where the part ends."""


def stated_letter(text: str, options: Options) -> str | None:
    """The only letter that a text states as its answer.

    These are looked for: "the answer is B", "option B is correct", "I choose B"; a first or last
    line, or a last sentence, that is nothing but a choice ("B", "(B) He sits down", "Therefore,
    B."), perhaps with a reason; the text of an option in place of its letter. All of them have to
    agree. Where another option is said to be possible, where a statement is a guess, and where a
    later sentence takes it back, nothing is stated.

    Args:
        options: the options, as far as they are known. Where there are several, no other letter is
            chosen.
    """
    text = undressed(text)
    named = letter_of_text(text, options)
    if named is not None:
        return named
    votes = [
        (letter, end)
        for letter, end in (*_called(text, options), *_alone(text, options))
        if letter is None or len(options) < 2 or letter in options
    ]
    by_text = stated(text, lambda part: letter_of_text(part, options))
    if not votes:
        return by_text
    letters = {letter for letter, _ in votes} | ({by_text} - {None})
    if len(letters) != 1:
        return None
    (letter,) = letters
    rest = text[min(end for _, end in votes) :]
    return (
        None if letter and (_offers_another(rest, letter) or is_answer_taken_back(rest)) else letter
    )


def _called(text: str, options: Options) -> Iterator[Vote]:
    """Return the letters that sentences call the answer."""
    cues = list(letter_cues(text))
    if len(cues) > MOST:
        yield None, len(text)
    for letter, start, end in cues[:MOST]:
        first, last = sentence_around(text, start, end)
        if is_no_statement(text[first:start], text[first:last]):
            continue
        rest = text[end:last]
        is_guess = is_hedged(rest, letter) or is_unsure(without_reason(text[start:last]))
        is_guess = is_guess or _is_rejected(rest, letter)
        line = text[end : end + _LONGEST_OPTION].partition("\n")[0]
        yield None if is_guess or names_another(line, letter, options) else letter, last


def _alone(text: str, options: Options) -> Iterator[Vote]:
    """Return the choices of the first line, the last line and the last sentence, where they are
    nothing but a choice."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return
    listed = _listed(lines)
    parts = [lines[place] for place in (0, len(lines) - 1) if place not in listed]
    if len(lines) - 1 not in listed:
        parts += sentences_of(text)[-1:]
    for part in dict.fromkeys(parts):
        end = (text.find(part) if part == lines[0] else text.rfind(part)) + len(part)
        lead = _THEREFORE.match(part)
        part = part[lead.end() :] if lead else part
        match = _LETTER.match(part)
        if match is None or _INITIALS.match(part):
            continue
        letter, rest = match[match.lastindex or 0].upper(), part[match.end() :]
        own = options.get(letter, "")
        if not _BEHIND.match(rest) and normal(rest) != normal(own):
            continue
        rest = without_option(rest, own)
        is_guess = is_hedged(rest, letter) or is_unsure(without_reason(rest))
        is_guess = is_guess or names_another(rest, letter, options) or _is_rejected(rest, letter)
        yield None if is_guess or part.rstrip().endswith("?") else letter, end


def _is_rejected(rest: str, letter: str) -> bool:
    """Whether the sentence of a letter calls it wrong: "B (incorrect)", "B. He sits: not shown"."""
    others = {*other_letters(rest), *(m[1] for m in _ANOTHER.finditer(rest))}
    return is_called_wrong(rest) and not others - {letter}


def _listed(lines: list[str]) -> set[int]:
    """Places of the lines that list options: "A. …", "B. …" below each other."""
    found: set[int] = set()
    before: tuple[int, str] | None = None
    for place, line in enumerate(lines):
        heading = _HEADING.match(line)
        if heading is None:
            continue
        if before is not None and ord(heading[1]) == ord(before[1]) + 1:
            found |= {before[0], place}
        before = place, heading[1]
    return found


def _offers_another(text: str, letter: str) -> bool:
    """Whether a sentence behind a choice calls another letter possible, or is one."""
    for sentence in sentences_of(text):
        letters = {*other_letters(sentence)}
        letters |= {
            m[1]
            for pattern in (_ANOTHER, _SUBJECT)
            for m in pattern.finditer(sentence)
            if not is_word(sentence, m)
        }
        if not letters - {letter}:
            continue
        if len(sentence.strip(" .,:;!?()[]")) == 1:
            return True
        if _TOO.search(sentence) and not _DENIED.search(sentence):
            return True
    return False
