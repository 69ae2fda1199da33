"""A prompt with films, images and sound through the whole of Qwen2.5-Omni's thinker, against
transformers.

How it is laid out is compared in test_omni_processors.py.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_longrl.cli.conversion.comparison import difference, model_logits
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import HuggingFaceTokenizer
from megatron_longrl.media.modality import MediaFile
from megatron_longrl.models.hf_reference import reference_logits
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from tests.audio_files import beep, tone, write_film, write_sound
from tests.omni_files import write_tokenizer
from tests.parity.comparison import TOLERANCE, assert_close, loaded
from tests.tiny_omni import thinker

PIXELS = {"video_min_pixels": 256, "video_max_pixels": 2000, "image_min_pixels": 256}
SEVENTEEN = Fraction(17_000, 1001)
"""Frames a second."""


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    generator = np.random.default_rng(0)

    def noise(frames: int, height: int, width: int) -> Any:
        return generator.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)

    sound = [(0.0, beep(5.4, 1.0, 1.5, 48_000))]
    write_film(folder / "odd.mp4", noise(91, 34, 60), SEVENTEEN, sound)
    write_film(folder / "moment.mp4", noise(3, 48, 30), 10, [(0.0, tone(0.3, 440, 48_000))])
    write_film(folder / "silent.mp4", noise(13, 34, 60), 5, None)
    write_film(folder / "long.mp4", noise(95, 16, 16), 1, [(0.0, beep(95, 60, 61, 48_000))])
    write_sound(folder / "short.wav", tone(0.3, 880, 16_000), 16_000)
    write_sound(folder / "long.flac", beep(95, 3, 94, 16_000), 16_000)
    Image.fromarray(noise(1, 25, 41)[0]).save(folder / "picture.png")
    return folder


ROWS: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"images": ["picture.png"]},
    "film": {"videos": ["odd.mp4"]},
    "0.3 s of sound": {"audios": ["short.wav"]},
    "95 s of sound": {"audios": ["long.flac"]},
    "film with sound": {"videos": ["odd.mp4"], "heard": True},
    "0.3 s of film with sound": {"videos": ["moment.mp4"], "heard": True},
    "95 s of film with sound": {"videos": ["long.mp4"], "heard": True},
    "two films, one of them silent": {"videos": ["odd.mp4", "silent.mp4"], "heard": True},
    "all": {"videos": ["odd.mp4"], "heard": True, "images": ["picture.png"],
            "audios": ["short.wav", "long.flac"]},
}  # fmt: skip


def built(config: Any, folder: Path, media: Path, kind: str) -> Prompt:
    told = ROWS[kind]
    row = Row(
        problem_id=kind,
        problem="What happens here?",
        answer="A",
        reasoning="",
        videos=tuple(media / name for name in told.get("videos", ())),
        problem_type="general",
        data_type="text",
        source=kind,
        images=tuple(media / name for name in told.get("images", ())),
        other_media=tuple(MediaFile(media / name, "audio") for name in told.get("audios", ())),
        audio_in_video=told.get("heard"),
    )
    return prompt_builder(config, HuggingFaceTokenizer(folder), "sft").build(row)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of transformers' model, and ours."""
    folder = tmp_path_factory.mktemp("omni") / "hf"
    ids: dict[str, Any] = write_tokenizer(folder)
    thinker(**ids).save_pretrained(folder)
    config, _, model = loaded(
        folder, video_frames=9, missing_audio="silence", **PIXELS, seq_length=8192
    )
    return HfFolder(folder), config, model


@pytest.mark.parametrize("kind", ROWS)
@torch.no_grad()
def test_logits(kind, both, media):
    source, config, model = both
    prompt = built(config, source.folder, media, kind)
    units = [spec.load(range(spec.num_units)) for spec in prompt.media]
    theirs = reference_logits(source, config, prompt, units)
    ours = model_logits(model, config.parallel, config.model, prompt, units)
    assert_close(ours, theirs)
    for number in range(len(units)):  # each medium is seen, or heard
        (first, *rest) = units[number]
        changed = [*units[:number], (first * 0.5, *rest), *units[number + 1 :]]
        other = model_logits(model, config.parallel, config.model, prompt, changed)
        assert difference(other, theirs).largest > 100 * TOLERANCE
