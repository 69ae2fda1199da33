"""The answer that a free text states: "…. The answer is 7.", "Answer: 7", a last line "7".

A response without ``<answer>`` and ``\\boxed{…}`` is read this way. A text that may be meant in two
ways states nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import TypeVar

from megatron_longrl.rewards.plain import plain

T = TypeVar("T")
Read = Callable[[str], T | None]
"""Function that reads the answer of a short text; None where it has none, or several."""

_CUE = re.compile(
    r"(?i:\bans(?:wers?)?(?:\s+to\s+(?:the|this|that|your)\s+(?:\w+\s+)?question)?[\"']?\s*"
    r"(?:(?:is|are|was|should\s+be|would\s+be|must\s+be|will\s+be)\b"
    r"(?:\s+(?:therefore|thus|then|simply|clearly|indeed|most\s+likely|as\s+follows))*\s*:?"
    r"|[:=]|->|\u2192)\s*(?=\S))"
    # A heading of its own line.
    r"|(?im:^[ \t]*(?:the[ ]|my[ ])?(?:(?:final|correct|right)[ ])*answer[ \t]*\n\s*(?=\S))"
    # Chinese: the answer is.
    r"|\u7b54\u6848\s*(?:\u662f|\u4e3a|\u70ba|:)\s*"
)
_END = re.compile(
    r"(?<!\bvs)(?<!\bca)(?<!\be\.g)(?<!\bi\.e)(?<!\bapprox)(?<!\bsec)(?<!\bmin)(?<!\b[A-Z]\.[A-Z])"
    r"(?:(?<!\A\d)(?<!\n\d)(?<!\A\d\d)(?<!\n\d\d)[.!?]+[\"')\]]*(?=\s|$)|\u3002|\n)"
)
_CONCLUSION = re.compile(
    r"\s*(?i:(?:so|therefore|thus|hence|consequently|overall|finally|in\s+total|in\s+conclusion"
    r"|in\s+summary)\b)[\s,:]*"
    r"(?=\S)"
)
_NAMING = re.compile(r"(?i:(?:it|this|that)(?:\s+is|'s)\b\s*:?)\s*(?=\S)")
_NO_STATEMENT = re.compile(  # Before "the answer is": nothing is stated behind it.
    r"(?i:\b(?:whether|if|unless|suppose|supposing|assume|assuming|not\s+(?:quite\s+)?(?:sure|certain)"
    r"|unsure|uncertain|unclear|impossible|maybe|perhaps|possibly|at\s+first|initially)\b)"
    r"|(?i:\b(?:not|never|cannot|nor|neither|hardly|nobody|no\s+one|refuse[sd]?"
    r"|(?:wrong|incorrect|false|mistake|mistaken)\s+(?:to|that))\b|n't\b)[^.;,:]*$"
    # "The wrong answer is": another answer than the one that is asked for.
    r"|(?i:\b(?:wrong|incorrect|false|worst|opposite|initial|first|second(?:[- ]best)?|previous"
    r"|earlier|original|former|expected|tempting|other|another|alternative|possible|plausible"
    r"|unlikely|(?:least|less)\s+\w+)\s+$)"
    r"|\u4e0d$"
)
_UNSURE = re.compile(
    r"(?i:\b(?:maybe|perhaps|possibly|probably|might|could|may\s+be|either|whether|guess"
    r"|not\s+(?:quite\s+)?(?:sure|certain)|unsure|uncertain|unclear|unknown|impossible|hard\s+to"
    r"|cannot\s+(?:be\s+)?(?:tell|say|determined?|answer(?:ed)?)|if|unless)\b"
    r"|\b(?:can't|couldn't|cannot)\s+(?:tell|say|determine|answer|see|find)\b)"
)
_TAKEN_BACK = re.compile(
    r"\A\s*(?i:(?:or|wait|hmm+|actually|alternatively|maybe|perhaps|possibly|oops|sorry|hold\s+on"
    r"|correction|edit(?=\s*:)|update(?=\s*:)|revised|strike\s+that|scratch\s+that"
    r"|on\s+(?:reflection|closer)|looking\s+(?:closer|again|more\s+closely)"
    r"|no(?=\s*[,.!:\u2014-]))\b)"
    r"|\A\s*(?:\u4e0d\u5bf9|\u66f4\u6b63)"  # Chinese: wrong, correction
    # "B. Incorrect.": a verdict on what stands before it.
    r"|\A\W*(?i:(?:not\s+(?:right|correct|true|shown|seen|visible)|wrong|incorrect|false))\W{0,9}\Z"
    r"|(?i:\b(?:on\s+second\s+thought|let\s+me\s+(?:double-?\s?check|re-?check|re-?consider|re-?count|re-?think)"
    r"|(?:could|might|may)\s+also|i(?:'m|\s+am)\s+not\s+(?:sure|certain)"
    r"|(?:this|that|it)\s+(?:is\s+(?:wrong|incorrect|false|not\s+(?:right|correct|true|shown))"
    r"|(?:does\s+not|doesn't|never)\s+(?:happen|occur)s?))\b)"
)
_CONTRAST = re.compile(r"\A\s*(?i:however|but)\b")
_VERDICT = re.compile(
    r"(?:[(:\u2013\u2014-]\s{0,3}|(?i:\b(?:is|are|was|were|be)\s{1,3}(?:\w{1,20}ly\s{1,3})?))"
    r"(?i:wrong|incorrect|false|untrue|not\s+(?:right|correct|true|shown|seen|visible))"
    r"[\s.!)]{0,9}\Z"
)
"""Pattern of the end of a sentence about a wrong answer: "7 is incorrect", "7 (wrong)"."""

_REASON = re.compile(
    r"(?<=\S)(?:\s++[,;:]?+|[,;:])?+\s*+"
    r"(?:\((?=[^)]{0,200}[A-Za-z])|(?<=\s)[\u2013\u2014-]\s(?=[A-Za-z])"
    r"|(?i:\b(?:because|since|due\s+to|rather\s+than|instead\s+of|which|where|given\s+that|but\s+not"
    r"|not|based\s+on|as\s+(?:the|it|he|she|they|there|we|you|can|seen|shown)))\b)"
)
_EQUALS = re.compile(r"=|\bequals\b")
_LABEL = re.compile(r"^[ \t]*[A-Za-z ]+:.*$", re.MULTILINE)
"""A line such as "Confidence: 95%"."""

_DENIAL = re.compile(r"(?i:\b(?:not|never|cannot|neither|nor)\b|n't\b)")
_NOT = re.compile(r"(?i:not|never)\b")
_WORD = re.compile(r"[^\W\d_]{2,}")
_LISTED = re.compile(r"\s*(?:\d{1,2}[.)]|[-\u2022*])\s+\S")
_SHORT = 5
"""Words of a line that may be an answer by itself."""

_LONGEST = 1000
"""Characters of a sentence that are looked at."""

MOST = 64
"""Statements that are looked at: a text with more of them repeats itself, and states nothing."""


def stated(
    text: str,
    read: Read[T],
    *,
    whole: Read[T] | None = None,
    lines: bool = False,
    also: re.Pattern[str] | None = None,
) -> T | None:
    """Return the answer that a text states, as ``read`` understands it.

    These are looked for, and the first that is there counts:

    1. statements: "the answer is …", "Answer: …", also with the answer on the next line. All that
       can be read have to say the same, and nothing behind them may take it back;
    2. the whole text, where it names nothing else;
    3. a first or last line that is nothing but the answer, or a last sentence that begins with
       "therefore", "so" or the like. All such lines have to say the same.

    Args:
        whole: the function that reads the whole text; by default it is read like its parts.
        lines: whether an answer may go over several lines, as a list does.
        also: further words that a statement begins with.
    """
    text = plain(text)
    cues = [cue for pattern in (_CUE, also) if pattern for cue in pattern.finditer(text)]
    if len(cues) > MOST:
        return None
    found = [
        (value, end)
        for statement, end in sorted(_statements(text, cues, lines=lines), key=itemgetter(1))
        if (value := _first(read, statement)) is not None
    ]
    if found:
        value, end = found[-1]
        others = [other for other, _ in found[:-1]]
        others += _alone(read, _LABEL.sub("", text[end:]), words=2)
        agree = all(other == value for other in others)
        return value if agree and not is_answer_taken_back(text[end:]) else None
    sentences = sentences_of(text)
    if cues or not sentences:
        return None  # It speaks of an answer, and does not give one.
    if is_taken_back(text, first=1) or any(_is_denied(read, sentence) for sentence in sentences):
        return None
    concluded = conclusion(sentences)
    if not is_unsure(text):
        value = (whole or read)(text)
        if value is None and len(sentences) == 1:
            value = _first(read, concluded or text)
        if value is not None:
            return value
    if any(map(is_unsure, sentences[-2:])):
        return None
    ends = _alone(read, *_outer(text))
    if concluded is not None and (value := _first(read, concluded)) is not None:
        ends.append(value)
    if not ends or any(other != ends[0] for other in [*ends, *_alone(read, text)]):
        return None
    return ends[0]


def sentences_of(text: str) -> list[str]:
    """The sentences and lines of a text, without empty ones."""
    parts, at = [], 0
    for match in _END.finditer(text):
        parts.append(text[at : match.end()])
        at = match.end()
    parts.append(text[at:])
    return [part.strip() for part in parts if re.search(r"\w", part)]


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the bounds of the sentence that holds ``text[start:end]``."""
    first = max(0, start - _LONGEST)
    for match in _END.finditer(text, first, start):
        first = match.end()
    most = min(len(text), end + _LONGEST)
    last = _END.search(text, max(start, end - 1), most)
    return first, last.end() if last is not None else most


def is_no_statement(before: str, sentence: str) -> bool:
    """Whether words that give an answer give none here: they are denied, doubted or asked.

    Args:
        before: the text before them in their sentence.
    """
    return bool(_NO_STATEMENT.search(before[-_LONGEST:])) or sentence.rstrip().endswith("?")


def is_unsure(text: str) -> bool:
    """Whether a text says that it does not know."""
    return _UNSURE.search(text) is not None


def is_taken_back(text: str, first: int = 0) -> bool:
    """Whether what follows an answer, from this sentence on, takes it back or gives another one."""
    return any(_TAKEN_BACK.search(sentence) for sentence in sentences_of(text)[first:])


def is_answer_taken_back(rest: str) -> bool:
    """Whether what follows a statement takes it back; a sentence that continues with "however"
    does, too."""
    sentences = sentences_of(rest)
    return is_taken_back(rest) or bool(sentences and _CONTRAST.match(sentences[0]))


def is_called_wrong(sentence: str) -> bool:
    """Whether a sentence ends by calling wrong what it names."""
    return _VERDICT.search(sentence) is not None


def conclusion(sentences: Sequence[str]) -> str | None:
    """Return the answer in the last sentence, where that begins with "therefore", "so" or the
    like."""
    lead = _CONCLUSION.match(sentences[-1]) if sentences else None
    return sentences[-1][lead.end() :] if lead is not None else None


def without_reason(text: str) -> str:
    """A text up to "because …", "not …", "(…)" and the like."""
    reason = _REASON.search(text)
    return text[: reason.start()] if reason is not None else text


def _statements(
    text: str, cues: Sequence[re.Match[str]], *, lines: bool
) -> Iterator[tuple[str, int]]:
    """Yield the text behind each "the answer is", up to the end of the sentence, and its end."""
    for cue in cues:
        first, last = sentence_around(text, cue.start(), cue.end() + 1)
        if is_no_statement(text[first : cue.start()], text[first:last]):
            continue
        if lines:
            last = _with_list(text, last)
        statement = text[cue.end() : last].strip()
        if not _NOT.match(statement) and not is_unsure(without_reason(statement)):
            yield statement, last


def _with_list(text: str, end: int) -> int:
    """Return the end of the list whose first line ends at ``end``."""
    most = min(len(text), end + _LONGEST)
    while end < most and text[end - 1] == "\n":
        line = text[end:most].split("\n", 1)[0]
        if not line.strip() or not (_LISTED.match(line) or not _WORD.search(line)):
            break
        end = min(end + len(line) + 1, most)
    return end


def _first(read: Read[T], text: str) -> T | None:
    """Return the answer of a statement without its reason, else with it, else behind its last
    "="."""
    if is_called_wrong(text):
        return None
    short = without_reason(text)
    forms = [short, text, *[short[equals.end() :] for equals in _EQUALS.finditer(short)][-1:]]
    for form in dict.fromkeys(forms):
        naming = _NAMING.match(form)
        if (value := read(form[naming.end() :] if naming else form)) is not None:
            return value
    return None


def _is_denied(read: Read[T], sentence: str) -> bool:
    """Whether a sentence that says something asks or denies it."""
    value = _first(read, sentence)
    if value is None:
        return is_called_wrong(sentence) and read(sentence) is not None
    denial = _DENIAL.search(sentence)
    # "7, not 8" denies nothing that stands before "not".
    return sentence.endswith("?") or (
        denial is not None and _first(read, sentence[: denial.start()]) is None
    )


def _alone(read: Read[T], *texts: str, words: int = _SHORT) -> list[T]:
    """Return the answer in lines of few words."""
    lines = dict.fromkeys(line.strip() for text in texts for line in text.split("\n"))
    short = (line for line in lines if len(line) < 200 and len(_WORD.findall(line)) <= words)
    return [v for line in short if line and (v := _first(read, line)) is not None]


def _outer(text: str) -> list[str]:
    """The first and the last line."""
    lines = [line for line in text.split("\n") if line.strip()]
    return [lines[0], lines[-1]] if lines else []
