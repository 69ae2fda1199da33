"""Plain sentences as cells of Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(
    r"`[^`]+`"  # is code already
    r"|<[^\s<>]+>(?:…?</?[^\s<>]+>…?)*"  # tags
    r"|--[a-z][a-z0-9-]*[a-z0-9]"  # flags
    r"|docs/\w+\.md"
    r"|(?<![\w/.])[\w./]*\w_[\w./]*\w|(?<![\w/.])_\w+"  # names and paths with underscores
    r"|\{\{? ?\w+ ?\}?\}"
)


def formatted(text: str) -> str:
    """Flags, names and tags as code; pages of the docs as links."""

    def mark(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith("docs/"):
            page = found.removeprefix("docs/")
            return f"[{page}]({page})"
        return found if found.startswith("`") else f"`{found}`"

    return _CODE.sub(mark, " ".join(text.split()))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; line breaks in cells are kept."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", "<br>") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")
