"""Rows as nobody means them.

Each row stands between two good ones and is loaded, checked and expanded as training does it, for
two families. Whatever it holds, it gives a prompt, or the row's own error with its file and line;
and the good ones are there.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_longrl.data.rows import RowProblem, load_rows
from tests.fuzz.as_training import builders, expand_and_decode
from tests.fuzz.isolated import READ, REFUSED, WRONG, Outcome
from tests.unit.data.video_files import write as write_video

SECONDS = 10.0
"""That one row may take."""

WORDS = (
    *("Where is the ball?", "A", "B. left", "\n", " ", "", "<video>", "<image>", "<|video_pad|>"),
    *("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<think>", "</think>", "<answer>"),
    *(
        "</answer>",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "{question}",
        "%s",
        "\\boxed{A}",
        "\ue000",
        "\ue0000",
    ),
    *("\0", "\ud800", "\udfff", "\ufeff", "\u2028", "\x1b[31m", "\x85", "é", "e\u0301", "球", "😀"),
    *("\u202e", "\ufffd", "\uffff", "\U0010ffff", "ﷺ", "\u2581", "a" * 300, "9" * 400, "\r\n\t"),
)
NAMES = (
    *("clip.webm", "picture.png", "gone.mp4", ".", "..", "/", "/dev/null", "/dev/zero", "a\0b"),
    *("\ud800.mp4", "x" * 300, "https://a.org/b.mp4", "file:///gone.mp4", "text.txt", "", " ", "~"),
    *("clip.webm/x", "loop", "/proc/self/mem", "pipe", "a\nb.mp4", "CLIP.WEBM"),
)
FIELDS = (
    *("problem_id", "problem", "question", "prompt", "answer", "solution", "ground_truth"),
    *(
        "reasoning",
        "videos",
        "video",
        "images",
        "image",
        "data_type",
        "problem_type",
        "more",
        "\ud800",
    ),
)


def value(random_: random.Random, depth: int = 0) -> Any:
    """Something that JSON may hold."""
    kinds: list[Callable[[], Any]] = [
        lambda: text(random_),
        lambda: random_.choice([None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 1e308]),
        lambda: random_.randint(-(10**30), 10**30),
        lambda: random_.choice(NAMES),
    ]
    if depth < 4:
        kinds += [
            lambda: [value(random_, depth + 1) for _ in range(random_.randint(0, 3))],
            lambda: {
                text(random_): value(random_, depth + 1) for _ in range(random_.randint(0, 3))
            },
        ]
    return random_.choice(kinds)()


def text(random_: random.Random) -> str:
    """Words, some of which break something."""
    return "".join(random_.choice(WORDS) for _ in range(random_.randint(0, 6)))


def line(random_: random.Random) -> bytes:
    """A row, more or less."""
    row: dict[str, Any] = {"problem": "Where?", "answer": "A"}
    if random_.random() < 0.5:
        row["videos"] = random_.choice(["clip.webm", ["clip.webm"] * random_.randint(1, 3)])
    if random_.random() < 0.2:
        row["images"] = "picture.png"
    for _ in range(random_.randint(0, 3)):
        name = random_.choice(FIELDS)
        is_path = name.startswith(("video", "image")) and random_.random() < 0.7
        row[name] = random_.choice(NAMES) if is_path else value(random_)
    for name in ("problem", "reasoning", "answer"):
        if random_.random() < 0.3:
            row[name] = text(random_)
    if random_.random() < 0.1:
        row.pop(random_.choice(list(row)))
    written = json.dumps(row, ensure_ascii=random_.random() < 0.5).encode(errors="surrogatepass")
    return broken(random_, written) if random_.random() < 0.2 else written.replace(b"\n", b" ")


def broken(random_: random.Random, written: bytes) -> bytes:
    """Bytes that are changed, cut, doubled, or replaced by what parsers fear."""
    at = random_.randrange(len(written))
    depth = random_.choice([10, 100, 1000, 100_000])
    choices = [
        written[:at],
        written[:at] + bytes([random_.randrange(256)]) + written[at + 1 :],
        written + written,
        b"[" * depth,
        b'{"problem": "a", "answer": "b", "x": ' + b"[" * depth + b"]" * depth + b"}",
        b'{"problem": "a", "answer": ' + b"7" * random_.choice([10, 4300, 4301, 9000]) + b"}",
        b'{"problem": "a", "answer": 1e' + b"9" * random_.randint(1, 400) + b"}",
        b'{"a": 1, "a": {}, "problem": "a", "answer": "b"}',
        b"\xff\xfe" + written,
        b"\xef\xbb\xbf" + written,
    ]
    return random_.choice(choices).replace(b"\n", b" ")


def write_media(folder: Path) -> None:
    """What some of the names name."""
    from PIL import Image

    write_video(folder / "clip.webm", "libvpx-vp9", 5)
    Image.new("RGB", (20, 30)).save(folder / "picture.png")
    (folder / "text.txt").write_text("no video")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")


def make(seed: int, count: int) -> Iterator[bytes]:
    """Lines of a file of rows."""
    for number in range(count):
        yield line(random.Random(f"{seed}/row/{number}"))


class Rows:
    """Loads and expands lines.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        write_media(folder)
        self._path = folder / "rows.jsonl"
        self._builders = builders(folder)

    def __call__(self, written: bytes) -> Outcome:
        """What came of a row."""
        self._path.write_bytes(b"\n".join((_GOOD, written, _GOOD)))
        problems: list[RowProblem] = []
        rows = load_rows([self._path], problems=problems)
        sources = [row.source for row in rows]
        if [sources[0], sources[-1]] != [f"{self._path}:1", f"{self._path}:3"]:
            return Outcome(WRONG, f"the rows around it are not there: {sources}")
        if problems:
            (problem,) = problems
            is_told = len(rows) == 2 and problem.location == (str(self._path), 2)
            return Outcome(REFUSED if is_told else WRONG, str(problem))
        if not written.strip(b" \t\r\n\xef\xbb\xbf"):
            return Outcome(READ if len(rows) == 2 else WRONG, "an empty line")
        told = [expand_and_decode(rows[1], builder) for builder in self._builders]
        return next((outcome for outcome in told if outcome.kind != READ), Outcome(READ))


_GOOD = b'{"problem": "a", "answer": "b"}'
