"""Mutants of good videos, images and files of sound, each of which a row names: it gives pixels and
sound, or one line that names the row or the file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from megatron_longrl.data.rows import load_rows
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.image.reader import probe_image, read_image
from tests.fuzz import seeds
from tests.fuzz.as_training import builders, expand_and_decode, hearing_builder
from tests.fuzz.isolated import READ, REFUSED, WRONG, Outcome

SECONDS = 30.0
"""That an input may take."""
NAME = "input\x1b[31m.bin"
"""A file's name that would colour a terminal."""
Input = tuple[str, bytes]
"""``videos``, ``images`` or ``audios``, and a file's bytes."""


def make(kind: str, seed: int, count: int, folder: Path) -> Iterator[tuple[str, Input]]:
    """Names of what was changed, and inputs."""
    made = {"videos": lambda: seeds.videos(folder), "images": seeds.images}
    made["sounds"] = lambda: seeds.sounds(folder)
    sources = list(made[kind]())
    for number in range(count):
        origin, data = sources[number % len(sources)]
        draw = random.Random(f"{seed}/{kind}/{number}")
        yield origin, (field_of(kind, origin), mutate(data, draw))


def field_of(kind: str, name: str) -> str:
    """The field of a row that names an input: films are heard, too."""
    if kind != "sounds":
        return kind
    return "videos" if name.startswith("film") else "audios"


class Sounds:
    """Expands rows that name sound, or a film whose sound is asked for, and decodes both.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._rows = folder / "rows.jsonl"
        self._builder = hearing_builder(folder)

    def __call__(self, given: Input) -> Outcome:
        """What came of it."""
        field, data = given
        self._path.unlink(missing_ok=True)
        self._path.write_bytes(data)
        row = {"problem": "a", "answer": "b", field: NAME, "audio_in_video": field == "videos"}
        self._rows.write_text(json.dumps(row))
        (loaded,) = load_rows([self._rows])
        return expand_and_decode(loaded, self._builder)


class Media:
    """Expands and decodes rows that name an input.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._rows = folder / "rows.jsonl"
        self._builders = builders(folder, max_tokens=4000)

    def __call__(self, given: Input) -> Outcome:
        """What came of it."""
        kind, data = given
        self._path.unlink(missing_ok=True)
        self._path.write_bytes(data)
        self._rows.write_text(json.dumps({"problem": "a", "answer": "b", kind: NAME}))
        (row,) = load_rows([self._rows])
        outcomes = [expand_and_decode(row, builder) for builder in self._builders]
        if kind == "images":
            outcomes.append(_size_is_true(self._path))
        for wanted in (WRONG, REFUSED):
            found = next((outcome for outcome in outcomes if outcome.kind == wanted), None)
            if found is not None:
                return found
        return Outcome(READ)


def _size_is_true(path: Path) -> Outcome:
    """Whether an image has the size that was told of it."""
    try:
        info, pixels = probe_image(path), read_image(path)
    except MediaError as error:
        return Outcome(REFUSED, str(error))
    if pixels.shape != (info.height, info.width, 3):
        return Outcome(WRONG, f"{pixels.shape}, though {info}")
    return Outcome(READ)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to six changes of a file."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        if not changed:
            break
        # The beginning holds headers; half of the changes go there.
        at = draw.randrange(min(len(changed), draw.choice((64, 600, 10**9))))
        length = draw.choice((1, 2, 4, 16, 100, 1000))
        match draw.randrange(8):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                changed[at : at + length] = draw.randbytes(len(changed[at : at + length]))
            case 3:
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            case 4:
                changed[at : at + 4] = draw.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"))
            case 5:
                del changed[at : at + length]
            case 6:
                del changed[at:]
            case 7:
                changed[at:at] = changed[at : at + length]
    return bytes(changed)
