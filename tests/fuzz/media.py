"""Read mutants of good videos and images: none may hang, end the process, or raise anything but an
error that names the file.

``python -m tests.fuzz.media --videos 1000 --images 3500 [--seed 0] [--keep DIR]``. The exit status
is 1 where one does; these inputs are kept. Reading is done by a process of its own, because a
decoder may end it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz import seeds

LONGEST = 30.0
"""Seconds that an input may take."""
NAME = "input\x1b[31m.bin"
"""A file's name that would colour a terminal."""


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


def read(kind: str, path: Path) -> str:
    """Read a file as training does; returns what came of it, in a few words.

    Raises:
        Exception: whatever should not have happened.
    """
    from megatron_longrl.data.frame_view import FrameView
    from megatron_longrl.data.image import probe_image, read_image
    from megatron_longrl.data.video import decode_frames
    from megatron_longrl.data.video_info import VideoError
    from megatron_longrl.data.video_probe import probe
    from megatron_longrl.data.video_spec import VideoSpec, sample_frame_indices

    try:
        if kind == "image":
            info = probe_image(path)
            found = read_image(path).shape
            assert found == (info.height, info.width, 3), (found, info)
        else:
            info = probe(path)
            indices = (*sample_frame_indices(info, 6, 2.0), info.num_frames - 1)
            view = FrameView(32, 32, (0.5,) * 3, (0.5,) * 3)
            decode_frames(VideoSpec(str(path), "", indices, view))
    except VideoError as error:
        text = str(error)
        assert text.isprintable(), text
        assert "input\\x1b[31m.bin: " in text, text
        return "refused"
    return "read"


def _reader(orders: Connection) -> None:
    while True:
        kind, path = orders.recv()
        try:
            orders.send((read(kind, path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        except Exception:
            orders.send((traceback.format_exc(), 0))


class Reader:
    """A process that reads; another one takes its place when it is gone."""

    def __init__(self) -> None:
        self._start()
        self.most_memory = 0

    def _start(self) -> None:
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_reader, args=(theirs,), daemon=True
        )
        self._process.start()
        theirs.close()

    def read(self, kind: str, path: Path) -> str:
        """What came of it: all is a fault that is not ``read`` or ``refused``."""
        self._orders.send((kind, path))
        try:
            if self._orders.poll(LONGEST):
                result: str
                result, memory = self._orders.recv()
                self.most_memory = max(self.most_memory, memory)
                return result
            result = f"hangs for {LONGEST} s"
        except (EOFError, ConnectionError):
            self._process.join()
            result = f"ends the process ({self._process.exitcode})"
        self._process.kill()
        self._process.join()
        self._start()
        return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where an input was not read and not refused as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--images", type=int, default=3500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_found"))
    given = parser.parse_args(argv)
    began, outcomes = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader = Reader()
        sources = {"video": list(seeds.videos(folder)), "image": list(seeds.images())}
        for kind, count in (("video", given.videos), ("image", given.images)):
            for number in range(count):
                origin, data = sources[kind][number % len(sources[kind])]
                draw = random.Random(f"{given.seed}/{kind}/{number}")
                path = folder / NAME
                path.unlink(missing_ok=True)
                path.write_bytes(mutate(data, draw))
                result = reader.read(kind, path)
                if result not in ("read", "refused"):
                    given.keep.mkdir(exist_ok=True)
                    kept = given.keep / f"{kind}_{given.seed}_{number}_{origin}"
                    kept.write_bytes(path.read_bytes())
                    sys.stdout.write(f"{kept}: {result}\n")
                    result = "fault"
                outcomes[f"{kind} {result}"] += 1
    seconds, memory = time.monotonic() - began, reader.most_memory / 2**20
    counts = ", ".join(f"{name}: {count}" for name, count in sorted(outcomes.items()))
    sys.stdout.write(f"{counts}; {seconds:.0f} s, at most {memory:.2f} GiB\n")
    return int(any(name.endswith("fault") for name in outcomes))


if __name__ == "__main__":
    sys.exit(main())
