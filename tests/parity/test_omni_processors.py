"""Tokens, positions, features and pixels of Qwen2.5-Omni's prompts against transformers' processor
and ``get_rope_index``, which run in a program of their own because they need torchvision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import config_from_hf
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import HuggingFaceTokenizer
from megatron_longrl.media.modalities.audio.spec import AudioSpec
from megatron_longrl.media.modalities.audio.track import samples_of
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modality import MediaFile
from megatron_longrl.media.spec import MediaSpec
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.models.qwen_vl.grid import patchify
from tests.audio_files import beep, write_film, write_sound
from tests.functional.launches import run
from tests.omni_files import write_processor, write_tokenizer
from tests.parity.films import frames_of
from tests.tiny_omni import BINS, settings
from tests.torchvision_beside import python_path

PATCH = 14
FEATURES = 1e-5
PIXELS = 0.05
"""Three levels of 255, by a channel's deviation: how torch and Pillow differ in resizing."""
QUESTION = "What is on screen when the tone sounds?"

FILMS: dict[str, tuple[int, int, int, Fraction, float | None]] = {
    # width, height, frames, rate, seconds of sound
    "two seconds": (64, 48, 8, Fraction(4), 2.0),
    "wide": (130, 74, 25, Fraction(30000, 1001), 0.9),
    "short sound": (74, 60, 41, Fraction(5), 3.0),
    "0.3 s": (48, 48, 3, Fraction(10), 0.3),
    "cinema": (60, 90, 90, Fraction(24000, 1001), 4.0),
    "95 s": (28, 28, 95, Fraction(1), 95.3),
    "slow": (64, 48, 7, Fraction(1, 3), 20.0),
    "silent": (64, 48, 12, Fraction(4), None),
}
SOUNDS = {"short.wav": 0.3, "five.mp3": 5.013, "long.flac": 95.007, "odd.ogg": 2.01}


@dataclass(frozen=True)
class Job:
    """What a prompt holds, and how frames are taken."""

    films: tuple[str, ...] = ()
    audio_in_video: bool = False
    audios: tuple[str, ...] = ()
    images: int = 0
    fps: float | None = None
    frames: int | None = None


JOBS = {
    "text": Job(),
    "image": Job(images=1),
    "images": Job(images=2),
    "0.3 s of sound": Job(audios=("short.wav",)),
    "5 s of sound": Job(audios=("five.mp3",)),
    "95 s of sound": Job(audios=("long.flac",)),
    "sounds": Job(audios=("odd.ogg", "short.wav", "five.mp3")),
    "sound and image": Job(audios=("odd.ogg",), images=1),
    "film": Job(("two seconds",), fps=2),
    "film at an odd rate": Job(("cinema",), frames=10),
    "film and sound": Job(("short sound",), audios=("five.mp3",), fps=2),
    "heard": Job(("two seconds",), True, fps=2),
    "heard at an odd rate": Job(("cinema",), True, frames=14),
    "heard, wide": Job(("wide",), True, fps=5),
    "heard, sound ends early": Job(("short sound",), True, fps=1.7),
    "heard, 0.3 s": Job(("0.3 s",), True, frames=2),
    "heard, 95 s": Job(("95 s",), True, fps=0.9),
    "heard, frames far apart": Job(("slow",), True, frames=4),
    "heard, of which one is silent": Job(("silent", "two seconds"), True, fps=2),
    "heard, with a sound of its own": Job(("two seconds",), True, ("odd.ogg",), 1, fps=2),
    "all": Job(("cinema", "cinema"), True, ("short.wav", "odd.ogg"), 2, frames=8),
}


def row_of(folder: Path, job: Job) -> Row:
    return Row(
        problem_id="0",
        problem=QUESTION,
        answer="A",
        reasoning="",
        videos=tuple(folder / f"{name}.mp4" for name in job.films),
        problem_type="general",
        data_type="text",
        source="rows:1",
        images=tuple(folder / f"{n}.png" for n in range(job.images)),
        other_media=tuple(MediaFile(folder / name, "audio") for name in job.audios),
        audio_in_video=job.audio_in_video,
    )


class Answers:
    """What transformers says; ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids = write_tokenizer(folder)
        write_processor(folder, PATCH, BINS, 100, {"min_pixels": 3136, "max_pixels": 60_000})
        model = settings(**self.ids)
        model.vision_config.patch_size = PATCH
        model.save_pretrained(folder)
        self.config = Config.of(
            {**config_from_hf(folder), "seq_length": 100_000, "max_position_embeddings": 200_000}
        )
        self._write_media()
        self.prompts = {name: self._prompt(job) for name, job in JOBS.items()}
        jobs = {name: self._told(name) for name in JOBS}
        told = {"settings": self.ids, "prompts": jobs}
        (folder / "jobs.json").write_text(json.dumps(told))
        run(["-m", "tests.parity.omni_processors", str(folder)], 1, 400, python_path()).succeeded()
        self._found = load_file(folder / "answers.safetensors")

    def theirs(self, job: str, name: str) -> Tensor:
        return self._found[f"{job}/{name}"]

    def _write_media(self) -> None:
        generator = np.random.default_rng(4)
        for number, size in enumerate(((75, 123), (240, 61))):
            pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.folder / f"{number}.png")
        for name, (width, height, frames, rate, seconds) in FILMS.items():
            shades = [np.full((height, width, 3), 7 * k % 250, np.uint8) for k in range(frames)]
            sound = None
            if seconds is not None:
                tone = beep(seconds, seconds / 3, seconds / 2, 48_000)
                sound = [(0.0, tone + generator.normal(0, 0.01, len(tone)).astype(np.float32))]
            write_film(self.folder / f"{name}.mp4", shades, rate, sound)
        for name, seconds in SOUNDS.items():
            samples = {".mp3": 44_100, ".ogg": 48_000}.get(Path(name).suffix, 16_000)
            noise = generator.normal(0, 0.1, round(seconds * samples)).astype(np.float32)
            write_sound(self.folder / name, noise, samples)

    def _prompt(self, job: Job) -> Prompt:
        config = self.config.replace(
            video_frames=job.frames, video_fps=job.fps, missing_audio="silence"
        )
        builder = prompt_builder(config, HuggingFaceTokenizer(self.folder), "sft")
        return builder.build(row_of(self.folder, job))

    def _told(self, name: str) -> dict[str, Any]:
        """What transformers is given: frames that we take, as they are, and samples."""
        job, prompt = JOBS[name], self.prompts[name]
        videos, sounds, rates = [], [], set()
        for number, spec in enumerate(prompt.media):
            file = f"{name} {number}.npy".replace("/", "-")
            if isinstance(spec, VideoSpec):
                whole = frames_of(Path(spec.path))
                taken = list(dict.fromkeys(spec.frame_indices))
                np.save(self.folder / file, np.stack([whole[index] for index in taken]))
                videos.append(file)
                rates.add(spec.frames_per_second)
            elif isinstance(spec, AudioSpec):
                np.save(self.folder / file, samples(spec))
                sounds.append(file)
        return {
            "videos": videos,
            "sounds": sounds,
            "audios": len(job.audios),
            "images": [f"{n}.png" for n in range(job.images)],
            "audio_in_video": job.audio_in_video,
            "fps": max(rates, default=None),
            "question": QUESTION,
        }


def samples(spec: AudioSpec) -> np.ndarray[Any, Any]:
    """All samples of a sound."""
    whole = np.zeros(spec.excerpt.samples, dtype=np.float32)
    for start, piece in () if spec.is_silent else samples_of(spec.path, spec.excerpt):
        whole[start : start + len(piece)] = piece
    return whole


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(tmp_path_factory.mktemp("omni"))


@pytest.mark.parametrize("job", JOBS)
def test_tokens_and_positions(job: str, answers: Answers) -> None:
    prompt = answers.prompts[job]
    theirs = answers.theirs(job, "input_ids")
    assert prompt.token_ids.tolist() == theirs.tolist()
    places = [answers.ids[f"{kind}_token_index"] for kind in ("audio", "image", "video")]
    assert torch.equal(prompt.media_mask, torch.isin(theirs, torch.tensor(places)))
    assert torch.equal(prompt.positions, answers.theirs(job, "positions"))


def loaded(specs: list[MediaSpec]) -> list[tuple[Tensor, ...]]:
    return [spec.load(range(spec.num_units)) for spec in specs]


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if job.audios or job.films])
def test_features_and_pixels(job: str, answers: Answers) -> None:
    heard = [spec for spec in answers.prompts[job].media if isinstance(spec, AudioSpec)]
    for number, (spec, (features, frames)) in enumerate(zip(heard, loaded([*heard]), strict=True)):
        ours = features.flatten(0, 1)[: int(frames.sum())]
        theirs = answers.theirs(job, f"features/{number}")[: len(ours)]
        torch.testing.assert_close(ours, theirs, atol=FEATURES, rtol=0)
        assert theirs.shape[0] - len(ours) < 3 and spec.num_frames >= len(ours)
    seen = [spec for spec in answers.prompts[job].media if isinstance(spec, VideoSpec)]
    if seen:
        patches = [patchify(units, PATCH, 2).flatten(0, 1) for (units,) in loaded([*seen])]
        theirs = answers.theirs(job, "pixel_values_videos")
        torch.testing.assert_close(torch.cat(patches), theirs, atol=PIXELS, rtol=0)
