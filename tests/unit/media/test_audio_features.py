"""Log-mel features against Hugging Face's extractor, and parts of them against the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from megatron_longrl.media.modalities.audio import features
from megatron_longrl.media.modalities.audio.features import Mel, log_mel
from megatron_longrl.media.modalities.audio.spec import AudioPreprocess, AudioSpec
from megatron_longrl.media.modalities.audio.track import RATE, whole_track
from tests.audio_files import beep, write_sound

TOLERANCE = 1e-5
HOW = AudioPreprocess(Mel(), 200, 1, 1, 1)
"""Qwen2.5-Omni's."""


def made(kind: str, samples: int) -> np.ndarray:
    generator, times = np.random.default_rng(samples), np.arange(samples)
    return {
        "noise": lambda: generator.normal(0, 0.1, samples),
        "sine": lambda: np.sin(0.3 * times),
        "quiet and loud": lambda: np.where(times > samples // 2, 1.0, 1e-4) * np.sin(0.9 * times),
        "silence": lambda: np.zeros(samples),
        # The loudest frame is one behind the last that is kept.
        "click at the end": lambda: np.where(times == samples - 1, 1.0, 0.0),
        "click at the start": lambda: np.where(times == 1, 1.0, 0.0),
    }[kind]().astype(np.float32)


def in_pieces(samples: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Sound as a decoder gives it; what is silent is left out, as a hole is."""
    for start in range(0, len(samples), size):
        piece = samples[start : start + size]
        if piece.any():
            yield start, piece


@pytest.mark.parametrize("samples", [321, 1600, 48_000, 80_100, 33 * RATE + 7])
@pytest.mark.parametrize(
    "kind",
    ["noise", "sine", "quiet and loud", "silence", "click at the end", "click at the start"],
)
def test_they_are_those_of_hugging_face(
    kind: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are shorter than the clip, pieces that fit neither, and no padding to 300 s."""
    monkeypatch.setattr(features, "_BLOCK_FRAMES", 700)
    sound = made(kind, samples)
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=40)
    found = extractor(sound, sampling_rate=RATE, padding="max_length", return_attention_mask=True)
    frames = int(np.sum(found["attention_mask"]))
    assert frames == Mel().frames_of(samples)
    ours = log_mel(in_pieces(sound, 1111), samples, Mel(), range(frames))
    expected = torch.tensor(found["input_features"][0][:, :frames].T)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_some_units_are_bit_for_bit_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_BLOCK_FRAMES", 450)
    path = write_sound(tmp_path / "a.wav", beep(11.3, 9.0, 9.2, RATE) + made("noise", 180_800))
    spec = AudioSpec(str(path), "", whole_track(path), HOW)
    whole, frames = spec.load(range(spec.num_units))
    assert spec.num_units == 6 and frames.tolist() == [200] * 5 + [130]
    for units in (range(1), range(1, 4), range(2, 6), range(5, 6)):
        part, length = spec.load(units)
        assert torch.equal(part, whole[units.start : units.stop])
        assert torch.equal(length, frames[units.start : units.stop])
    assert not whole[-1, 130:].any()


@pytest.mark.parametrize(
    ("frames", "tokens"),
    [(1, 0), (2, 0), (3, 1), (100, 25), (199, 50), (200, 50), (201, 50), (202, 50), (204, 51),
     (250, 62), (300, 75), (500, 125), (3000, 750), (30000, 7500)],
)  # fmt: skip
def test_tokens_of_frames(frames: int, tokens: int) -> None:
    """Measured on transformers' tower."""
    assert HOW.tokens_of(frames) == tokens


def test_another_tower_cuts_otherwise() -> None:
    """Qwen3-Omni: chunks of 100 frames, halved three times, of which eight see each other."""
    how = AudioPreprocess(Mel(), 100, 8, 3, 0)
    assert [how.tokens_of(n) for n in (1, 99, 100, 101, 800, 1000)] == [1, 13, 13, 14, 104, 130]
    assert how.unit_frames == 800


@pytest.mark.parametrize("samples", [480, 32_000, 32_160, 32_320, 32_480, 100_000])
def test_units_share_out_all_tokens(samples: int, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", made("noise", samples), RATE)
    spec = AudioSpec(str(path), "", whole_track(path), HOW)
    each = [spec.tokens_of(range(unit, unit + 1)) for unit in range(spec.num_units)]
    assert sum(each) == spec.num_tokens and min(each) > 0
    loaded, frames = spec.load(range(spec.num_units))
    assert [HOW.tokens_of(int(n)) for n in frames] == each
    assert loaded.nbytes == spec.num_units * spec.unit_bytes
