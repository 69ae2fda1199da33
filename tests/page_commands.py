"""The commands that README and docs/ show, as programs and their arguments."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(^|\s)#\s.*$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_LOOP = ("for", "done")
_ENDS = ";&|\n"


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    page: Path
    line: int
    """Of the opening fence, from 1."""
    language: str
    text: str

    @property
    def name(self) -> str:
        """``docs/data.md:10``."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Program and arguments of every command, as bash splits them; variables of its
        environment, which stand before it, and the words of loops are left out."""
        lexer = shlex.shlex(
            _COMMENT.sub("", self.text.replace("\\\n", " ")), posix=True, punctuation_chars=_ENDS
        )
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
        found: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set(_ENDS):
                found.append([])
            else:
                found[-1].append(word)
        return [words for words in map(_of_program, found) if words]


def blocks() -> list[Block]:
    """All of all pages, whatever their language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1], match[2]))
    return found


def _of_program(words: list[str]) -> list[str]:
    if words and words[0] in _LOOP:
        return []
    while words and (words[0] == "do" or _ASSIGNMENT.match(words[0])):
        words = words[1:]
    return words
