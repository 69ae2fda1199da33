"""More files that make libraries raise: each costs its own row, which is named with its file."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from megatron_longrl.data.rows import RowError, load_rows
from megatron_longrl.media.media_error import printable
from tests.cases import doors
from tests.fuzz import seeds
from tests.fuzz.as_training import builders, expand_and_decode
from tests.fuzz.isolated import READ, REFUSED
from tests.unit.data.video_files import write

DAMAGES = ("cut in the header", "cut in half", "zeros", "noise", "a number of pixels")


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """A test that hangs is ended by the signal's default action."""
    signal.alarm(300)
    yield
    signal.alarm(0)


def damaged(data: bytes, how: str, draw: random.Random) -> bytes:
    changed = bytearray(data)
    match how:
        case "cut in the header":
            return data[: draw.randint(1, 40)]
        case "cut in half":
            return data[: len(data) // 2]
        case "zeros":
            at = draw.randint(2, 30)
            changed[at : at + 12] = bytes(12)
        case "noise":
            at = draw.randint(8, min(60, len(data) - 1))
            changed[at : at + 30] = draw.randbytes(30)
        case "a number of pixels":
            at = draw.randint(8, min(30, len(data) - 1))
            changed[at : at + 4] = b"\x7f\xff\xff\xff"
    return bytes(changed)


def reads(path: Path) -> bool:
    """Whether Pillow reads an image."""
    try:
        with Image.open(path) as image:
            image.load()
            image.convert("RGB")
    except Exception:
        return False
    return True


def test_images_of_every_format(tmp_path: Path) -> None:
    """What Pillow reads is used, and of everything else the row is told."""
    names: list[str] = []
    expected: dict[str, bool] = {}
    for name, data in seeds.images():
        for how in DAMAGES:
            path = tmp_path / f"{len(names)}.{name}"
            path.write_bytes(damaged(data, how, random.Random(f"{name} {how}")))
            names.append(path.name)
            expected[path.name] = reads(path)
    found = doors.check_media(tmp_path, names, "images")
    assert set(found) == set(names)
    used = {name for name, told in found.items() if isinstance(told, dict)}
    # A format that needs another program, or that Pillow only knows by its letters, is not opened.
    assert used <= {name for name, is_read in expected.items() if is_read}
    left = {n for n, is_read in expected.items() if is_read and n.rpartition(".")[2] != "eps"}
    assert left - used == set()
    assert len(used) > 20 and len(names) - len(used) > 100
    builder = builders(tmp_path / "tokenizers", max_tokens=4000)[0]
    for row in load_rows([tmp_path / "media.jsonl"])[::5]:
        kind, told = expand_and_decode(row, builder)[:2]
        name = row.images[0].name
        assert kind in ((READ, REFUSED) if name in used else (REFUSED,)), told
        assert kind == READ or name in told


CODECS = {
    "VP9 in WebM": ("libvpx-vp9", "webm", b"V_VP9", b"V_ABC"),
    "VP8 in Matroska": ("libvpx", "mkv", b"V_VP8", b"V_XYZ"),
    "h264 in MP4": ("libx264", "mp4", b"avc1", b"zzzz"),
    "h264 in Matroska": ("libx264", "mkv", b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"),
    "JPEG in MOV": ("mjpeg", "mov", b"jpeg", b"qqqq"),
    "MPEG-4 in AVI": ("mpeg4", "avi", b"FMP4", b"QQQQ"),
    "JPEG in AVI": ("mjpeg", "avi", b"MJPG", b"ZZZZ"),
}


@pytest.mark.parametrize("name", CODECS)
def test_unknown_codecs(tmp_path: Path, name: str) -> None:
    codec, ending, known, unknown = CODECS[name]
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / f"a.{ending}", codec, 5, pixel_format=pixel_format)
    assert doors.check_media(tmp_path, [path.name])[path.name]["frames"] == 5
    data = path.read_bytes()
    assert known in data
    path.write_bytes(data.replace(known, unknown))
    assert isinstance(doors.check_media(tmp_path, [path.name])[path.name], str)


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\ngood.ts\n#EXT-X-ENDLIST\n",
    "b.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\nhttp://127.0.0.1:9/a.ts\n",
    "c.m3u": "#EXTM3U\ngood.ts\n",
    "d.ffconcat": "ffconcat version 1.0\nfile good.ts\n",
    "e.txt": "file 'good.ts'\n",
    "f.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\n",
    "g.mpd": "<?xml version='1.0'?><MPD><Period><BaseURL>good.ts</BaseURL></Period></MPD>",
    "h.pls": "[playlist]\nFile1=good.ts\nNumberOfEntries=1\n",
    "i.svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='good.ts'/></svg>",
    "j.mp4": "",
}


def special(folder: Path) -> list[str]:
    """Names of what is no regular file, or holds no video."""
    write(folder / "good.ts", "libx264", 5)
    for name, text in PLAYLISTS.items():
        (folder / name).write_text(text)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    socket.socket(socket.AF_UNIX).bind(str(folder / "socket.mp4"))
    links = {
        "to_pipe": "pipe.mp4", "to_nowhere": "gone", "to_itself": "to_itself",
        "to_zero": "/dev/zero", "to_null": "/dev/null", "to_memory": "/proc/self/mem",
    }  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "a\nb\x1b[31m.mp4").write_text("no video")
    return [
        *PLAYLISTS, "folder.mp4", "pipe.mp4", "socket.mp4", *links, "gone.mp4", "good.ts/a.mp4",
        "x" * 300, "a\nb\x1b[31m.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["videos", "images"])
def test_what_is_no_file_of_media(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused at once, nothing else is opened, and each line is one line."""
    names = special(tmp_path)
    rows = doors.write_rows(
        tmp_path / "rows.jsonl", [{"problem": "a", "answer": "b", kind: name} for name in names]
    )
    status, report = doors.check(rows)
    assert (status, report["usable"]) == (1, 0)
    assert [problem["line"] for problem in report["problems"]] == list(range(1, len(names) + 1))
    for name, problem in zip(names, report["problems"], strict=True):
        assert problem["media"] == str(tmp_path / name)
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    builder = builders(tmp_path / "tokenizers", max_tokens=4000)[0]
    for number, row in enumerate(load_rows([rows])):
        with pytest.raises(RowError) as caught:
            builder.build(row)
        text = str(caught.value)
        assert text.startswith(f"{rows}:{number + 1}: {tmp_path}")
        assert printable(names[number]) in text
        found = builder.problem(row)
        path = tmp_path / names[number]
        may_be_one = len(names[number]) < 256 and path.is_file() and path.stat().st_size > 0
        assert (found is None) == may_be_one
