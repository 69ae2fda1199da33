"""Sound of files and films by true timestamps, and the files that have none, or a broken one."""

from __future__ import annotations

import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.audio.track import (
    RATE,
    Excerpt,
    film_excerpt,
    find_track,
    probe_track,
    samples_of,
    whole_track,
)
from tests.audio_files import CODECS, beep, tone, write_film, write_sound

EARLY = 0.03
"""Seconds by which codecs and resampling may move a tone."""


def heard(path: Path, excerpt: Excerpt) -> np.ndarray:
    """All samples."""
    whole = np.zeros(excerpt.samples, dtype=np.float32)
    last = 0
    for start, piece in samples_of(path, excerpt):
        assert start >= last and start + len(piece) <= excerpt.samples
        whole[start : start + len(piece)] = piece
        last = start + len(piece)
    return whole


def tones(samples: np.ndarray) -> list[tuple[float, float]]:
    """Begin and end of what is loud, in seconds; what is apart by less than 0.1 s is one."""
    loud = np.flatnonzero(np.abs(samples) > 0.1)
    if not len(loud):
        return []
    cuts = np.flatnonzero(np.diff(loud) > 0.1 * RATE)
    begins, ends = loud[np.r_[0, cuts + 1]], loud[np.r_[cuts, len(loud) - 1]]
    return [(b / RATE, e / RATE) for b, e in zip(begins, ends, strict=True)]


def near(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    return np.shape(found) == np.shape(expected) and np.allclose(found, expected, atol=EARLY)


def frames(count: int) -> list[np.ndarray]:
    return [np.full((32, 32, 3), 9 * k % 250, np.uint8) for k in range(count)]


@pytest.mark.parametrize("ending", CODECS)
def test_every_container(ending: str, tmp_path: Path) -> None:
    path = write_sound(tmp_path / f"a{ending}", beep(6.0, 2.5, 2.8, CODECS[ending][1]))
    excerpt = whole_track(path)
    assert abs(excerpt.samples - 6 * RATE) <= 300, "AAC fills its last frame"
    assert near(tones(heard(path, excerpt)), [(2.5, 2.8)])


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".webm", ".mkv"])
@pytest.mark.parametrize("seconds", [1.5, 3.0, 5.0])
def test_a_film_has_sound_as_long_as_itself(ending: str, seconds: float, tmp_path: Path) -> None:
    """Longer sound is cut, shorter sound is followed by silence."""
    sound = [(0.0, beep(seconds, 1.0, 1.25, 48_000))]
    path = write_film(tmp_path / f"a{ending}", frames(24), 8, sound)
    excerpt = film_excerpt(path)
    assert excerpt.samples == 3 * RATE
    assert near(tones(heard(path, excerpt)), [(1.0, 1.25)])


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_sound_that_starts_late(ending: str, tmp_path: Path) -> None:
    sound = [(0.7, beep(2.0, 1.0, 1.25, 48_000))]
    path = write_film(tmp_path / f"a{ending}", frames(24), 8, sound)
    assert near(tones(heard(path, film_excerpt(path))), [(1.7, 1.95)])
    alone = whole_track(path)
    assert near(tones(heard(path, alone)), [(1.0, 1.25)]), "of a file alone from its first sample"


def test_holes(tmp_path: Path) -> None:
    part = tone(0.5, 700, 48_000)
    path = write_sound(tmp_path / "a.mkv", part)
    path = write_film(tmp_path / "b.mkv", frames(40), 8, [(0.0, part), (2.0, part), (4.1, part)])
    found = tones(heard(path, film_excerpt(path)))
    assert near(found, [(0.0, 0.5), (2.0, 2.5), (4.1, 4.6)])


@pytest.mark.parametrize("drift", [0.99, 1.01])
def test_a_clock_that_drifts(drift: float, tmp_path: Path) -> None:
    """12 seconds by the file's clock, in which there are more or fewer samples."""
    rate = 48_000
    samples = np.zeros(round(12 * rate * drift), dtype=np.float32)
    for at in (1, 6, 11):
        first = round(at * rate * drift)
        samples[first : first + rate // 5] = tone(0.2, 900, rate)
    path = write_film(
        tmp_path / "a.mkv", frames(48), 4, [(0.0, samples)], claimed_rate=rate * drift
    )
    found = [begin for begin, _ in tones(heard(path, film_excerpt(path)))]
    assert np.allclose(found, [1, 6, 11], atol=0.05)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_mixed(channels: int, tmp_path: Path) -> None:
    """Their mean: of the same sound on all of them it is this sound."""
    samples = beep(2.0, 0.5, 1.0, RATE)
    path = write_sound(tmp_path / "a.flac", samples, channels=channels)
    assert np.allclose(heard(path, whole_track(path)), samples, atol=1e-4)


def test_another_rate(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", beep(2.0, 0.5, 1.0, 8_000), 8_000)
    excerpt = whole_track(path)
    assert excerpt.samples == 2 * RATE and near(tones(heard(path, excerpt)), [(0.5, 1.0)])


def test_eight_hours(tmp_path: Path) -> None:
    """Its length is known without decoding it; only what is asked for is decoded."""
    path = tmp_path / "a.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=8_000, layout="mono")
        silence = np.zeros((1, 65_535), dtype=np.int16)
        for number in range(8 * 3600 * 8_000 // silence.shape[1] + 1):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8_000, number * silence.shape[1]
            frame.time_base = Fraction(1, 8_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert 8 * 3600 <= probe_track(path).seconds < 8 * 3600 + 17
    next(samples_of(path, Excerpt(Fraction(0), RATE)))


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    return path


def scrambled(path: Path) -> Path:
    """With noise in place of a tenth of its bytes, in the middle."""
    content = bytearray(path.read_bytes())
    first, count = len(content) // 2, len(content) // 10
    content[first : first + count] = np.random.default_rng(0).bytes(count)
    path.write_bytes(bytes(content))
    return path


def noise(folder: Path, ending: str) -> Path:
    rate = CODECS[ending][1]
    samples = np.random.default_rng(1).normal(0, 0.1, 8 * rate).astype(np.float32)
    return write_sound(folder / f"a{ending}", samples)


def text(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


def picture(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder / "a.png"


def beyond(folder: Path) -> Path:
    """Matroska whose header claims more bytes than a file can have."""
    path = folder / "a.webm"
    path.write_bytes(b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 6 + b"\xfe" + bytes(64))
    return path


def empty(folder: Path) -> Path:
    """A header, and nothing behind it."""
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
    return folder / "a.wav"


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda folder: folder / "gone.wav", "No such file"),
    "an address": (lambda folder: Path("https://x.org/a.mp3"), "are not opened"),
    "a folder": (lambda folder: folder, "a folder"),
    "an empty file": (lambda folder: text(folder, "a.wav", ""), "the file is empty"),
    "a text": (lambda folder: text(folder, "a.wav", "not sound"), "not a file of sound"),
    "a playlist": (
        lambda folder: text(folder, "a.m3u8", "#EXTM3U\n#EXTINF:1,\na.wav\n"),
        "not a file of sound",
    ),
    "an image": (picture, "not a file of sound|no sound"),
    "a film without sound": (
        lambda folder: write_film(folder / "a.mp4", frames(8), 8, None),
        "no sound",
    ),
    "no samples": (empty, "no sound"),
    "a size beyond all files": (beyond, "Invalid argument"),
    "m4a, cut off": (lambda folder: cut(noise(folder, ".m4a"), 0.5), "truncated|cannot be read"),
    "mp4, cut off": (lambda folder: cut(noise(folder, ".mp4"), 0.5), "truncated|cannot be read"),
    "webm, cut off": (lambda folder: cut(noise(folder, ".webm"), 0.5), "truncated"),
    "flac, cut off": (lambda folder: cut(noise(folder, ".flac"), 0.5), "truncated|decoded"),
    "wav, cut off": (lambda folder: cut(noise(folder, ".wav"), 0.5), "truncated"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_heard_is_one_line(kind: str, tmp_path: Path) -> None:
    make, reason = BROKEN[kind]
    path = make(tmp_path)
    with pytest.raises(MediaError, match=reason) as error:
        for _ in samples_of(path, whole_track(path)):
            pass
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".mp3", ".ogg", ".m4a", ".webm", ".mkv", ".flac"])
def test_scrambled_sound_is_heard_or_refused(ending: str, tmp_path: Path) -> None:
    """Some codecs go on behind noise: then the rest of the tones are where they were."""
    rate = CODECS[ending][1]
    samples = np.random.default_rng(1).normal(0, 0.01, 8 * rate)
    samples += beep(8.0, 1.0, 1.2, rate) + beep(8.0, 7.0, 7.2, rate)
    path = scrambled(write_sound(tmp_path / f"a{ending}", samples.astype(np.float32)))
    try:
        found = tones(heard(path, whole_track(path)))
    except MediaError as error:
        assert str(error).startswith(str(path))
        return
    assert near(found[:1], [(1.0, 1.2)]) and near(found[-1:], [(7.0, 7.2)])


def test_a_silent_film_is_told_from_a_broken_one(tmp_path: Path) -> None:
    silent = write_film(tmp_path / "a.mp4", frames(8), 8, None)
    assert find_track(silent) is None
    assert film_excerpt(silent).samples == RATE
    with pytest.raises(MediaError):
        find_track(text(tmp_path, "b.mp4", "no film"))
