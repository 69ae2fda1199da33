"""The placeholders ``<image>`` and ``<video>`` in a question, as in LLaVA's data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_longrl.media.modality import all_modalities


def place_media(text: str, modalities: Sequence[str]) -> list[str | int]:
    """Split a question into texts, and the media between them by their numbers.

    Media of a modality that has no placeholder come before the question. Those of a modality that
    has some are at them, in their order.

    Args:
        modalities: the names of the modalities of the media, in the order of the row.

    Raises:
        ValueError: a modality has placeholders, but another number than media.
    """
    known = {modality.placeholder: modality for modality in all_modalities()}
    pattern = re.compile("|".join(map(re.escape, known)))
    marks = pattern.findall(text)
    waiting = {
        mark: [number for number, name in enumerate(modalities) if name == modality.name]
        for mark, modality in known.items()
    }
    for mark, numbers in waiting.items():
        count = marks.count(mark)
        if count and count != len(numbers):
            files = known[mark].field
            raise ValueError(
                f"the question has {count} {mark}, and the row {len(numbers)} {files}: write "
                f"one for each of the {files}, or none to have them before the question"
            )
    parts: list[str | int] = [
        number for number, name in enumerate(modalities) if f"<{name}>" not in marks
    ]
    at = 0
    for match in pattern.finditer(text):
        parts += [text[at : match.start()], waiting[match[0]].pop(0)]
        at = match.end()
    return [part for part in [*parts, text[at:]] if part != ""]
