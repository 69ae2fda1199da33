"""Sampling, sizes, pixels, tokens and positions of the Qwen-VL families against transformers'
processors, which run in a program of their own because they need torchvision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.data.prompts import Prompt, PromptBuilder
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import HuggingFaceTokenizer
from megatron_longrl.media.layout import PlaceholderSpan
from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.visual.info import VideoInfo
from megatron_longrl.models.family import find_family
from megatron_longrl.models.qwen_vl.grid import patchify
from megatron_longrl.models.qwen_vl.layout import Qwen25Layout
from tests.functional.launches import run
from tests.parity.films import VIDEOS, film, frames_of
from tests.qwen_vl_files import MEANS, write_processor, write_tokenizer
from tests.torchvision_beside import python_path
from tests.visual_media import visual

FAMILIES = {"qwen2_5_vl": 14, "qwen3_vl": 16}
"""Patch sizes."""
BUDGET = {"min_pixels": 4000, "max_pixels": 60000}
SIZES = [
    (frames, height, width)
    for frames in (2, 9, 64)
    for height, width in (
        (34, 60), (480, 640), (1080, 1920), (61, 33), (1000, 20), (17, 23), (720, 718)
    )
]  # fmt: skip
PUBLISHED = {"min_pixels": 4096, "max_pixels": 25165824}
"""Qwen3-VL's budget for a whole video."""
ODD = [
    (frames, height, width)
    for frames in (3, 5, 7, 9, 13, 15, 29, 31, 33, 63, 127, 255, 511, 767)
    for height, width in (
        (480, 854), (720, 1280), (1080, 1920), (360, 640), (61, 33), (20, 300), (2160, 3840)
    )
]  # fmt: skip
ODD_FILMS = [(90, 160, 3), (160, 226, 3), (64, 160, 5), (160, 48, 5), (48, 226, 7)]
"""Height, width and frames; to count the last one twice would change each size."""
SAMPLED: list[dict[str, Any]] = [
    {"frames": frames, "rate": rate, "fps": fps, "max_frames": most}
    for fps in (0.5, 1.0, 2.0, 30.0)
    for most in (64, 7)
    for frames, rate in ((240, 24.0), (37, 5.0), (1000, 29.97), (9, 2.0))
] + [{"frames": 100, "rate": 10.0, "nframes": n} for n in (2, 7, 16)]
"""What fetch_video of qwen-vl-utils is asked for."""
PROMPTS: list[tuple[int, list[int]]] = [(0, [n]) for n in range(len(VIDEOS))] + [
    (1, []), (0, [2, 7]), (2, [5, 0])
]  # fmt: skip
"""Number of images, and which videos."""


def frames_taken(videos: Sequence[int]) -> int:
    """Of each video: transformers refuses to take more frames than there are."""
    return min([6, *(VIDEOS[n][2] // 2 * 2 for n in videos)])


def info(frames: int, fps: float, height: int = 48, width: int = 64) -> VideoInfo:
    return VideoInfo(frames, fps, width, height, "vp9", frames / fps)


class Answers:
    """What transformers says; ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.films = [film(folder / f"{n}.webm", *video) for n, video in enumerate(VIDEOS)]
        self.odd_films = [
            film(folder / f"odd{n}.webm", width, height, frames, 8, 0)
            for n, (height, width, frames) in enumerate(ODD_FILMS)
        ]
        self.pictures = [folder / "0.png", folder / "1.png"]
        generator = np.random.default_rng(4)
        for path, size in zip(self.pictures, ((75, 123), (240, 61)), strict=True):
            pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((size[1], size[0])).save(path)
        for family, patch in FAMILIES.items():
            write_tokenizer(folder / family)
            write_processor(folder / family, family, patch, BUDGET)
        (folder / "jobs.json").write_text(json.dumps(self._jobs()))
        run(
            ["-m", "tests.parity.qwen_vl_processors", str(folder)], 1, 240, python_path()
        ).succeeded()
        self._found = load_file(folder / "answers.safetensors")

    def _jobs(self) -> dict[str, Any]:
        few, many = BUDGET.values()
        pixels = {"min_pixels": few, "max_pixels": many}
        sizes = [
            {
                "qwen2_5_vl": {"height": h, "width": w, "factor": 28, **pixels},
                "qwen3_vl": {"num_frames": n, "height": h, "width": w, "temporal_factor": 2,
                             "factor": 32, **pixels},
            }
            for jobs, pixels in (
                (SIZES, pixels), (ODD, PUBLISHED), ([(n, h, w) for h, w, n in ODD_FILMS], pixels)
            )
            for n, h, w in jobs
        ]  # fmt: skip
        for number, path in enumerate(self.films):
            np.save(self.folder / f"{number}.npy", np.stack(frames_of(path)))
        prompts = [
            {
                "images": [path.name for path in self.pictures[:images]],
                "videos": [self._told(n, frames_taken(videos)) for n in videos],
            }
            for images, videos in PROMPTS
        ]
        return {"sizes": sizes, "prompts": prompts}

    def _told(self, number: int, count: int) -> dict[str, Any]:
        """What transformers is told of a film: the frames that we take, and their numbers. Those of
        variable rate are frames of 1,000 a second: it knows of no other times."""
        found = probe(self.films[number])
        taken = {
            family: list(dict.fromkeys(self.layout(family).frame_indices(found, count, None)))
            for family in FAMILIES
        }
        told = {"file": f"{number}.npy", "taken": taken}
        if found.times is None:
            return told | {"places": taken, "rate": found.fps, "total": found.num_frames}
        times = {family: found.times[indices].tolist() for family, indices in taken.items()}
        total = round(found.duration_seconds * 1000)
        return told | {"places": times, "rate": 1000.0, "total": total}

    def theirs(self, family: str, name: str) -> Tensor:
        return self._found[f"{family}/{name}"]

    def layout(self, family: str, **fields: int) -> Any:
        build = find_family(family).build_layout
        assert build is not None
        config = config_of(family).replace(**fields)
        return build(config.family, HuggingFaceTokenizer(self.folder / family))

    def prompt(self, family: str, number: int) -> Prompt:
        images, videos = PROMPTS[number]
        films = [self.films[n] for n in videos]
        return self.built(family, films, self.pictures[:images], frames_taken(videos))

    def built(
        self, family: str, films: Sequence[Path], pictures: Sequence[Path], most: int
    ) -> Prompt:
        builder = PromptBuilder(
            HuggingFaceTokenizer(self.folder / family),
            self.layout(family),
            max_tokens=100_000,
            max_frames=most,
            fps=None,
        )
        row = Row(
            problem_id="0",
            problem="What happens?",
            answer="A",
            reasoning="",
            videos=tuple(films),
            problem_type="general",
            data_type="video",
            source="rows:1",
            images=tuple(pictures),
        )
        return builder.build(row)


def config_of(family: str) -> Config:
    budget = {
        f"{kind}_{name}": value for kind in ("video", "image") for name, value in BUDGET.items()
    }
    return Config.of(
        {
            "model_family": family,
            "num_layers": 1,
            "hidden_size": 8,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "seq_length": 64,
            "vision_patch_size": FAMILIES[family],
            "vision_temporal_patch_size": 2,
            "vision_tokens_per_second": 2,
            **budget,
            **MEANS[family],
        }
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(tmp_path_factory.mktemp("processors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family: str, answers: Answers) -> None:
    reader = answers.layout(family)
    for expected, (frames, height, width) in zip(
        answers.theirs(family, "sizes")[: len(SIZES)].tolist(), SIZES, strict=True
    ):
        view = reader.preprocess_spec(info(frames, 4.0, height, width), frames)
        assert [view.height, view.width] == expected, (frames, height, width)


def test_sizes_with_an_odd_number_of_frames(answers: Answers) -> None:
    """The last frame, which is there twice, counts once."""
    few, many = PUBLISHED.values()
    reader = answers.layout("qwen3_vl", video_min_pixels=few, video_max_pixels=many)
    expected = answers.theirs("qwen3_vl", "sizes")[len(SIZES) :].tolist()
    differ = 0
    for size, (frames, height, width) in zip(expected, ODD, strict=False):
        film = info(frames, 4.0, height, width)
        indices = reader.frame_indices(film, None, None)
        assert len(indices) == frames + 1
        view = reader.preprocess_spec(film, len(set(indices)))
        assert [view.height, view.width] == size, (frames, height, width)
        twice = reader.preprocess_spec(film, len(indices))
        differ += [twice.height, twice.width] != size
    assert differ  # or the test could not fail
    for size, path in zip(expected[len(ODD) :], answers.odd_films, strict=True):
        spec = visual(answers.built("qwen3_vl", [path], [], 64))[0]
        assert [spec.preprocess.height, spec.preprocess.width] == size, path


def fetch_video(job: dict[str, Any]) -> list[int]:
    """The formula of qwen-vl-utils 0.0.14: pairs of frames, at least four, spread to the end."""
    total = job["frames"]
    if "nframes" in job:
        count = 2 * round(job["nframes"] / 2)
    else:
        wanted = total / job["rate"] * job["fps"]
        count = 2 * int(min(max(wanted, 4), 2 * (job["max_frames"] // 2), total) // 2)
    return torch.linspace(0, total - 1, count).round().long().tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(len(SAMPLED)))
def test_sampling(number: int, family: str, answers: Answers) -> None:
    job = SAMPLED[number]
    most = job.get("nframes") or job["max_frames"]
    film = info(job["frames"], job["rate"])
    ours = answers.layout(family).frame_indices(film, most, job.get("fps"))
    assert list(ours) == fetch_video(job)


def test_a_repeated_last_frame_takes_no_time(answers: Answers) -> None:
    """Nine frames of five a second, all taken: a unit is 2 / 5 s, as without the tenth."""
    reader, film = answers.layout("qwen2_5_vl"), info(9, 5.0)
    indices = reader.frame_indices(film, None, None)
    assert indices == (0, 1, 2, 3, 4, 5, 6, 7, 8, 8)
    _, slots, _ = reader.parts(film, indices, reader.preprocess_spec(film, len(indices)))
    assert slots.seconds_per_unit == pytest.approx(2 / 5)


def test_text_comes_after_a_long_video(answers: Answers) -> None:
    """The example of transformers' ``get_rope_index``, at half the rate: three units of 2 x 2, 50
    positions apart."""
    reader = answers.layout("qwen2_5_vl")
    assert isinstance(reader, Qwen25Layout)
    positions = reader.positions([PlaceholderSpan(0, (3, 2, 2), 25.0), 5])
    time, height, width = positions.T.tolist()
    assert time == [0] * 4 + [50] * 4 + [100] * 4 + [101, 102, 103, 104, 105]
    assert height == [0, 0, 1, 1] * 3 + [101, 102, 103, 104, 105]
    assert width == [0, 1, 0, 1] * 3 + [101, 102, 103, 104, 105]


def test_positions_are_the_times_of_frames(answers: Answers) -> None:
    """Of a video of variable rate, where transformers knows an interval only: units at 0, 1.2 and
    9.5 seconds, two positions a second."""
    reader = answers.layout("qwen2_5_vl")
    times = np.array([0, 400, 1200, 1300, 9500, 9600], dtype=np.uint32)
    film = replace(info(6, 0.6), times=times)
    indices = reader.frame_indices(film, None, None)
    pieces = reader.parts(film, indices, reader.preprocess_spec(film, len(indices)))
    slots = pieces[1]
    _, height, width = slots.grid
    steps = reader.positions([slots])[:: height * width, 0]
    assert steps.tolist() == [0, 2, 19]


def is_variable(path: Path) -> bool:
    return probe(path).times is not None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_tokens_and_positions(number: int, family: str, answers: Answers) -> None:
    """Of what stands for images and videos: exactly, behind whatever comes before."""
    prompt = answers.prompt(family, number)
    ids = answers.theirs(family, f"prompts/{number}/input_ids")[0]
    windows = prompt.token_ids.unfold(0, len(ids), 1)
    (start,) = torch.where((windows == ids).all(1))[0].tolist()
    positions = prompt.positions[start : start + len(ids)] - prompt.positions[start]
    videos = PROMPTS[number][1]
    if family == "qwen2_5_vl" and any(is_variable(answers.films[n]) for n in videos):
        return  # theirs are evenly spaced; see test_positions_are_the_times_of_frames
    assert torch.equal(positions, answers.theirs(family, f"prompts/{number}/positions"))
    assert int(prompt.positions[-1].max()) > int(prompt.positions[: start + len(ids)].max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_pixels(number: int, family: str, answers: Answers) -> None:
    """95 % within one level of 255, all within two; grids exactly."""
    patch = FAMILIES[family]
    prompt = answers.prompt(family, number)
    std = torch.tensor(MEANS[family]["image_std"]).view(3, 1, 1, 1)
    for kind, names in (
        ("image", ("pixel_values", "image_grid_thw")),
        ("video", ("pixel_values_videos", "video_grid_thw")),
    ):
        specs = [spec for spec in visual(prompt) if spec.modality == kind]
        if not specs:
            continue
        expected, grids = (answers.theirs(family, f"prompts/{number}/{name}") for name in names)
        units = [spec.frames().unflatten(0, (-1, 2)) for spec in specs]
        ours = torch.cat([patchify(unit, patch, 2).flatten(0, 1) for unit in units])
        found = [
            [len(unit), spec.preprocess.height // patch, spec.preprocess.width // patch]
            for unit, spec in zip(units, specs, strict=True)
        ]
        assert found == grids.tolist()
        assert ours.shape == expected.shape
        levels = (ours - expected).unflatten(-1, (3, 2, patch, patch)).abs() * std * 255
        assert (levels <= 1.02).float().mean() >= 0.95
        assert levels.max() <= 2.02
        assert expected.std() > 0.2
