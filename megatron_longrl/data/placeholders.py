"""``<image>`` and ``<video>`` in a question, as LLaVA's data sets have them: where media stand."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLACEHOLDER = re.compile("<image>|<video>")


def place_media(text: str, are_images: Sequence[bool]) -> list[str | int]:
    """A question cut into texts, and the media between them by their numbers.

    Media of a kind that has no placeholder stand before the question. Those of a kind that has some
    stand at them, in their order.

    Args:
        are_images: of each medium, in the order of the row.

    Raises:
        ValueError: a kind has placeholders, but another number than media.
    """
    marks = _PLACEHOLDER.findall(text)
    waiting: dict[str, list[int]] = {"<image>": [], "<video>": []}
    for number, is_image in enumerate(are_images):
        waiting["<image>" if is_image else "<video>"].append(number)
    for mark, numbers in waiting.items():
        count = marks.count(mark)
        if count and count != len(numbers):
            kind = mark.strip("<>") + "s"
            raise ValueError(
                f"the question has {count} {mark}, and the row {len(numbers)} {kind}: write "
                f"one for each of the {kind}, or none to have them before the question"
            )
    parts: list[str | int] = [
        number
        for number, is_image in enumerate(are_images)
        if ("<image>" if is_image else "<video>") not in marks
    ]
    at = 0
    for match in _PLACEHOLDER.finditer(text):
        parts += [text[at : match.start()], waiting[match[0]].pop(0)]
        at = match.end()
    return [part for part in [*parts, text[at:]] if part != ""]
