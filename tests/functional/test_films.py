"""Pre-training and reinforcement learning of a tiny Wan, as a user launches them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from PIL import Image, ImageSequence

from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.observability.metrics_file import read_metrics
from tests import tiny_wan
from tests.functional.launches import CP2, TP2, Outcome, run
from tests.tiny_films import FLAGS, FRAMES, RL, write_films


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films and a folder of diffusers whose parts have random weights."""
    folder = tmp_path_factory.mktemp("films")
    write_films(folder)
    tiny_wan.write_folder(folder / "diffusers")
    return folder


def launch(program: str, data: Path, ranks: int, *flags: str | Path) -> Outcome:
    folder = ("--diffusers-folder", data / "diffusers")
    command = ["-m", f"megatron_longrl.{program}", *FLAGS, *folder, *flags]
    return run([str(word) for word in command], ranks, 400)


def rl(data: Path, ranks: int, *flags: str | Path) -> Outcome:
    prompts = ("--train-data-path", data, "--valid-data-path", data / "train.jsonl")
    reward = ("--reward-function", f"{data / 'reward.py'}:brightness", "--eval-samples", "2")
    algorithm = ("--rl-algorithm", "flow_grpo", "--train-iters", "2")
    return launch("train_rl", data, ranks, *RL, *prompts, *reward, *algorithm, *flags)


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pre-training on two replicas."""
    folder = tmp_path_factory.mktemp("base")
    launch(
        *("train_sft", data, 2, "--train-data-path", data, "--micro-batch-size", "2"),
        *("--train-iters", "12", "--lr", "1e-2", "--save", folder),
        *("--valid-data-path", data / "train.jsonl", "--eval-samples", "4"),
    ).succeeded()
    return folder


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metrics of all steps."""
    return [dict(step) for step in read_metrics(folder / "metrics.jsonl")]


def test_pre_training_lowers_the_loss(base: Path) -> None:
    steps = numbers(base)
    assert steps[-1]["valid/lm loss"] < steps[0]["lm loss"] - 0.05


def test_reinforcement_learning_on_two_ranks_that_share_a_film(
    base: Path, data: Path, tmp_path: Path
) -> None:
    rl(data, 2, "--pretrained-checkpoint", base, *CP2, "--save", tmp_path).succeeded()
    steps = numbers(tmp_path)
    assert all(step["flow/log_ratio_max"] <= 1e-6 for step in steps)
    assert all(step["updates"] == 2 and step["rewards_failed"] == 0 for step in steps)
    assert 0 < steps[0]["reward/mean"] < 1 and steps[0]["grad-norm"] > 0
    with Image.open(tmp_path / "samples" / "validation_0001.webp") as sheet:
        assert getattr(sheet, "n_frames", 1) == FRAMES


@pytest.mark.full(
    "tests/functional/test_films.py::test_reinforcement_learning_on_two_ranks_that_share_a_film"
)
def test_layouts_train_alike(base: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for name, layout in {"DP2": (), "TP2": TP2, "MR-SP2": CP2}.items():
        folder = tmp_path / name
        rl(data, 2, "--pretrained-checkpoint", base, *layout, "--save", folder).succeeded()
        found.append(numbers(folder))
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert ours["reward/mean"] == pytest.approx(theirs["reward/mean"], abs=0.02)
            assert ours["grad-norm"] == pytest.approx(theirs["grad-norm"], rel=0.05)


def test_generated_films_are_those_of_diffusers(data: Path, tmp_path: Path) -> None:
    """To 1/255, of a folder about which nothing else is said."""
    (tmp_path / "prompts.txt").write_text("a red square goes left")
    flags = (
        *("--pretrained-checkpoint", data / "diffusers", "--prompts", tmp_path / "prompts.txt"),
        *("--output", tmp_path / "out", "--eval-sampling-steps", "3", "--guidance-scale", "2"),
        *("--picture-height", "32", "--picture-width", "48", "--film-frames", "5", "--seed", "9"),
    )
    command = ["-m", "megatron_longrl.generate", *(str(flag) for flag in flags)]
    run(command, 1, 400, cold=True).succeeded()
    (row,) = [json.loads(line) for line in (tmp_path / "out/pictures.jsonl").open()]
    noise = noise_generator("first", 9, -2, row["prompt_number"], row["sample"])
    expected = WanPipeline.from_pretrained(data / "diffusers")(
        row["prompt"],
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=3,
        guidance_scale=2,
        output_type="np",
        latents=torch.randn(1, 16, 2, 4, 6, generator=noise),
    ).frames[0]
    with Image.open(tmp_path / "out" / row["file"]) as film:
        found = np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(film)])
    assert np.abs(found - np.round(expected * 255)).max() <= 1
    assert found.std() > 1, "not one colour"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--film-frames", "7"), "film_frames (7) is not one more than a multiple of 4, the "),
        (("--picture-height", "40"), "picture_height (40) is no multiple of 16, the pixels of "),
        (("--film-frames", "9"), ".mp4 has 5 frames, fewer than --film-frames 9: "),
    ],
)
def test_what_cannot_be_is_told(flags: tuple[str, ...], line: str, data: Path) -> None:
    train = ("--train-data-path", data, "--micro-batch-size", "2", "--train-iters", "1")
    (told,) = launch("train_sft", data, 1, *train, *flags).errors
    assert line in told, told
