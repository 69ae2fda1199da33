r"""The number that a text says: "about 1,234.5 m", "2 \times 10^3", "\frac{3}{4}", "- 5", "50 %".

A number is read whole or not at all. Text that is not understood ("1.234.567", "10^x", "3 - 4")
makes the whole text say nothing, and so do two numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from megatron_longrl.rewards.plain import plain

# Possessive: long rows of digits cost nothing.
_NUMBER = (
    r"(?:(?:\d{1,3}(?:,\d{3})++(?!,?\d)|\d{1,3}(?: \d{3})++(?! ?\d)|\d{1,3}(?:'\d{3})++(?!\d)|\d++)"
    r"(?:\.\d++)?+|\.\d++)(?:[eE][-+]?\d++(?!\w))?+"
)
_TOKEN = re.compile(
    rf"(?P<number>{_NUMBER})"
    r"|(?P<times>\\(?:times|cdot)(?![A-Za-z])|[\u00d7\u00b7\u22c5\u2219]|\*(?!\*)"
    r"|(?<=[\d)}])[xX](?=\s?\d)|(?<=[\d)}]\s)[xX](?=\s?\d))"
    r"|(?P<power>\^|\*\*)"
    r"|(?P<over>[/\u00f7]|\\div(?![A-Za-z]))"
    r"|(?P<fraction>\\[dt]?frac(?![A-Za-z]))"
    r"|(?P<command>\\[A-Za-z]+)"
    r"|(?P<word>[A-Za-z][A-Za-z0-9_]*(?:-\d[A-Za-z0-9_]*)*)"
    r"|(?P<sign>[-+])|(?P<open>[({])|(?P<close>[)}])|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_MINUS = re.compile(r"[\u2010-\u2013\u2212]|\b(?i:minus|negative)\s+(?=[\d.\\(])")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\u00b0")
_GROUPING = re.compile(r"(?<=\d)\{,\}(?=\d{3})")
_HARMLESS = {r"\approx", r"\sim", r"\simeq", r"\to", r"\rightarrow", r"\implies", r"\therefore"}
_UNKNOWN = set("<>\u2264\u2265\u00b1\u221a\u221e\u2260\u03c0")
_BEFORE_SIGN = {"=", ":", "is", "equals", "about", "approximately", "be", "was"}
_LARGE = {
    "hundred": 1e2,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
    "dozen": 12.0,
    "k": 1e3,
    "\u4e07": 1e4,
    "\u842c": 1e4,
    "\u4ebf": 1e8,
    "\u5104": 1e8,
}
_PERCENT = {"%", "percent", "percentage"}
_MOST = 8  # numbers that are looked at
_DEEPEST = 4


class _Unclear(Exception):
    """The text there is not understood."""


@dataclass(frozen=True)
class Number:
    """A number that a text states."""

    value: float
    is_percent: bool = False
    """Whether "%" or "percent" follows."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def read_number(text: str) -> Number | None:
    """The number that a text says; None where it says none, several, or one that is unclear.

    Signs, separators of thousands (1,234 or 1 234), exponents (1e5, 10^5), products, fractions
    (3/4, 1 1/2), and "thousand", "million" and the like are understood; other words and units do
    not count.
    """
    try:
        found = _Reader(_MINUS.sub("-", _GROUPING.sub(",", _DEGREES.sub("", plain(text))))).read()
    except (_Unclear, OverflowError, ZeroDivisionError):
        return None
    if not found or not all(math.isfinite(number.value) for number in found):
        return None
    first = found[0]
    same = all(
        number.is_percent == first.is_percent
        and math.isclose(number.value, first.value, rel_tol=1e-9)
        for number in found
    )
    return first if same else None


class _Reader:
    """One pass over the tokens of a text."""

    def __init__(self, text: str) -> None:
        tokens = [_Token(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(text)]
        self._tokens = [*tokens, _Token("end", "")]
        self._at = 0
        self._depth = 0  # of fractions within fractions

    def read(self) -> list[Number]:
        """All numbers. Raises _Unclear."""
        found: list[Number] = []
        before = _Token("start", "")  # without spaces
        touches = False  # nothing stands between it and what follows
        while (token := self._now).kind != "end":
            if token.kind == "sign" and self._then(1).kind in ("number", "fraction"):
                if before.kind in ("value", "sign") or (touches and before.kind == "close"):
                    raise _Unclear
                self._at += 1
                found.append(self._expression(-1.0 if token.text == "-" else 1.0))
                before = _Token("value", "")
            elif token.kind == "sign" and self._then(1).kind == "space" and self._begins(2):
                if before.kind not in ("start", "open") and before.text not in _BEFORE_SIGN:
                    raise _Unclear
                self._at += 2
                found.append(self._expression(-1.0 if token.text == "-" else 1.0))
                before = _Token("value", "")
            elif token.kind in ("number", "fraction"):
                if touches and (before.text == "." or before.kind == "value"):
                    raise _Unclear
                found.append(self._expression(1.0))
                before = _Token("value", "")
            else:
                self._skip(token, before)
                touches = token.kind != "space"
                before = before if token.kind == "space" else token
                continue
            touches = True
            if len(found) > _MOST:
                raise _Unclear
        return found

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _then(self, steps: int) -> _Token:
        return self._tokens[min(self._at + steps, len(self._tokens) - 1)]

    def _begins(self, steps: int) -> bool:
        return self._then(steps).kind in ("number", "fraction")

    def _skip(self, token: _Token, before: _Token) -> None:
        """Skip text that is no number, such as words and units with their powers."""
        unclear_sign = token.kind == "sign" and (
            before.kind == "sign" or self._then(1).kind == "open"
        )
        if token.kind in ("power", "times") or token.text in _UNKNOWN or unclear_sign:
            raise _Unclear
        if token.kind == "command" and token.text not in _HARMLESS:
            raise _Unclear
        self._at += 1
        if token.kind == "word" and self._now.kind == "power":
            self._at += 1
            self._exponent()

    def _expression(self, sign: float) -> Number:
        """A product or fraction, with the words that belong to it. Raises _Unclear."""
        value = sign * self._product()
        while (word := self._large()) is not None:
            value *= word
        at = self._at + (self._now.kind == "space")
        is_percent = self._tokens[at].text.casefold() in _PERCENT
        if is_percent:
            self._at = at + 1
        joined = self._now.text in (".", ",", ":", "'", "/") and self._then(1).kind == "number"
        if joined or self._now.kind in ("power", "number"):
            raise _Unclear
        return Number(value, is_percent)

    def _large(self) -> float | None:
        """The number that a word such as "million" stands for."""
        at = self._at + (self._now.kind == "space")
        text = self._tokens[at].text
        factor = _LARGE.get(text if text in ("k", "K") else text.casefold())
        if factor is None or (text == "k" and at != self._at):  # "5 k" may be anything.
            return None
        self._at = at + 1
        return factor

    def _product(self) -> float:
        value, divided = self._factor(), False
        while True:
            start = self._at
            self._pass("space")
            operator = self._now.kind
            if operator not in ("times", "over"):
                self._at = start
                return value
            self._at += 1
            self._pass("space")
            if not self._begins(0):
                if operator == "times":
                    raise _Unclear
                self._at = start  # "5 / day"
                return value
            if operator == "over" and divided:  # A date, or 6/2/3.
                raise _Unclear
            divided = divided or operator == "over"
            value = value * self._factor() if operator == "times" else value / self._factor()

    def _factor(self) -> float:
        if self._now.kind == "fraction":
            return self._fraction()
        text = self._now.text
        value = _float(text)
        self._at += 1
        if text.isdigit():
            value += self._part()
        if self._now.kind == "power":
            self._at += 1
            value = value ** self._exponent()
        return value

    def _part(self) -> float:
        """Return the fraction of a mixed number, 1 1/2 or 1\\frac{1}{2}; 0 where it has none."""
        space = self._now.kind == "space"
        following = [self._then(step) for step in range(space, space + 3)]
        if following[0].kind == "fraction":
            self._at += space
            return self._fraction()
        kinds = [token.kind for token in following]
        if not space or kinds != ["number", "over", "number"]:
            return 0.0
        above, below = following[0].text, following[2].text
        if not (above.isdigit() and below.isdigit() and int(above) < int(below)):
            return 0.0
        self._at += 4
        return int(above) / int(below)

    def _fraction(self) -> float:
        if self._depth == _DEEPEST:
            raise _Unclear
        self._at += 1
        self._pass("space")
        if self._now.kind == "number" and re.fullmatch(r"\d\d", self._now.text):  # \frac34
            above, below = (float(digit) for digit in self._now.text)
            self._at += 1
            return above / below
        self._depth += 1
        above, below = self._argument(), self._argument()
        self._depth -= 1
        return above / below

    def _argument(self) -> float:
        if self._now.text != "{":
            raise _Unclear
        self._at += 1
        value = self._signed()
        self._close("}")
        return value

    def _exponent(self) -> float:
        closing = {"{": "}", "(": ")"}.get(self._now.text)
        if closing is not None:
            self._at += 1
        value = self._signed() if closing else self._sign() * self._one()
        if closing is not None:
            self._close(closing)
        if self._now.kind == "power":
            raise _Unclear
        return value

    def _signed(self) -> float:
        self._pass("space")
        sign = self._sign()
        self._pass("space")
        if not self._begins(0):
            raise _Unclear
        return sign * self._product()

    def _sign(self) -> float:
        if self._now.kind != "sign":
            return 1.0
        self._at += 1
        return -1.0 if self._tokens[self._at - 1].text == "-" else 1.0

    def _one(self) -> float:
        if self._now.kind != "number":
            raise _Unclear
        self._at += 1
        return _float(self._tokens[self._at - 1].text)

    def _close(self, bracket: str) -> None:
        self._pass("space")
        if self._now.text != bracket:
            raise _Unclear
        self._at += 1

    def _pass(self, kind: str) -> None:
        if self._now.kind == kind:
            self._at += 1


def _float(text: str) -> float:
    return float(re.sub(r"[, ']", "", text))
