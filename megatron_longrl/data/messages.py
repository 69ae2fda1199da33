"""Chat messages of a row: system prompt, earlier turns, the question, the assistant's answer.

Contents are texts, or lists of parts as chat templates of transformers take them: ``{"type":
"text", "text": …}``, ``{"type": "video", "video": PATH}``, and the same with image and audio. A
part without a path stands for the next file of the row's field of that modality. LLaVA's
``conversations`` with ``from`` and ``value`` are read as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_longrl.media.modality import all_modalities

MESSAGES = ("messages", "conversations")
"""Names of the field."""
Turn = tuple[str, str]
"""Role (user or assistant) and text, in which placeholders stand for media."""
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass
class Exchange:
    """A question and, where there is one, the assistant's answer to it."""

    system: str | None
    history: tuple[Turn, ...]
    problem: str
    response: str | None
    media: dict[str, list[str]] = field(default_factory=dict)
    """Files by the name of their modality, in the order of their placeholders."""


def exchanges(messages: Any, fields: dict[str, list[str]]) -> list[Exchange]:
    """Return an exchange for each assistant's turn, and one for a question without an answer.

    Args:
        messages: the content of the row's field.
        fields: files of the row's own fields, by the name of their modality.

    Raises:
        ValueError: they are no messages; the text says why.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a list of turns with 'role' and 'content'")
    waiting = {name: list(files) for name, files in fields.items()}
    turns: list[tuple[str, str, dict[str, list[str]]]] = []
    for number, message in enumerate(messages):
        role, content = _role_and_content(message, number)
        turns.append((role, *_text(content, waiting, number)))
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    expected = ("user", "assistant")
    for number, (role, _, _) in enumerate(turns):
        if role != expected[number % 2]:
            raise ValueError(
                f"turn {number + 1} of 'messages' is of the {role}: behind at most one system "
                "turn, turns of user and assistant alternate"
            )
    if not turns:
        raise ValueError("'messages' have no turn of the user")
    unplaced = {name: files for name, files in waiting.items() if files}
    if unplaced:  # they stand before the first question
        marks = {m.name: m.placeholder for m in all_modalities()}
        role, text, media = turns[0]
        before = "".join(marks[name] * len(files) for name, files in unplaced.items())
        together = {n: [*unplaced.get(n, ()), *media.get(n, ())] for n in {*unplaced, *media}}
        turns[0] = (role, before + text, together)
    found = [_exchange(system, turns[:end]) for end in range(2, len(turns) + 1, 2)]
    return found if len(turns) % 2 == 0 else [*found, _exchange(system, turns)]


def _exchange(
    system: str | None, turns: Sequence[tuple[str, str, dict[str, list[str]]]]
) -> Exchange:
    response = turns[-1][1] if len(turns) % 2 == 0 else None
    asked = turns if response is None else turns[:-1]
    media: dict[str, list[str]] = {}
    for _, _, files in asked:
        for name, paths in files.items():
            media.setdefault(name, []).extend(paths)
    history = tuple((role, text) for role, text, _ in asked[:-1])
    return Exchange(system, history, asked[-1][1], response, media)


def _role_and_content(message: Any, number: int) -> tuple[str, Any]:
    if isinstance(message, dict):
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        if role in ("system", "user", "assistant") and content is not None:
            if role == "system" and number:
                raise ValueError("a system turn of 'messages' is not the first one")
            return role, content
    raise ValueError(
        f"turn {number + 1} of 'messages' needs a 'role' (system, user, assistant) and a 'content'"
    )


def _text(
    content: Any, waiting: dict[str, list[str]], number: int
) -> tuple[str, dict[str, list[str]]]:
    """A content as a text with placeholders, and the files at them."""
    media: dict[str, list[str]] = {}
    marks = {modality.name: modality.placeholder for modality in all_modalities()}
    if isinstance(content, str):
        for name, mark in marks.items():
            count = content.count(mark)
            media[name] = [waiting[name].pop(0) for _ in range(min(count, len(waiting[name])))]
        return content, media
    if not isinstance(content, list):
        raise ValueError(f"the content of turn {number + 1} of 'messages' is no text and no list")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        if kind not in marks:
            known = ", ".join(("text", *marks))
            raise ValueError(f"a part of turn {number + 1} of 'messages' has no type of {known}")
        path = part.get(kind) or part.get("path")
        if path is None:
            if not waiting[kind]:
                raise ValueError(f"a part of turn {number + 1} of 'messages' has no {kind}")
            path = waiting[kind].pop(0)
        media.setdefault(kind, []).append(path)
        texts.append(marks[kind])
    return "".join(texts), media
