"""Pre-training and reinforcement learning of a tiny Stable Diffusion 3, as a user launches them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.arena.shapes import combinations, write_prompts
from megatron_longrl.observability.metrics_file import read_metrics
from tests.functional.catalogue import catalogue_entries, told_of
from tests.functional.launches import CP2, TP2, Outcome, run
from tests.runner.tiers import full_only
from tests.tiny_flow import FLAGS, RL, write_broken_prompts, write_data

TIMES = ("time/", "iteration-time", "mem-")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and prompts, and a folder of diffusers whose autoencoder has hardly learned."""
    from megatron_longrl.arena.shapes_folder import write_folder

    folder = tmp_path_factory.mktemp("flow")
    write_data(folder)
    write_folder(folder / "diffusers", 0, steps=3)
    return folder


def launch(program: str, data: Path, ranks: int, *flags: str | Path) -> Outcome:
    folder = ("--diffusers-folder", data / "diffusers")
    command = ["-m", f"megatron_longrl.{program}", *FLAGS, *folder, *flags]
    return run([str(word) for word in command], ranks, 400)


def rl(data: Path, ranks: int, *flags: str | Path, prompts_of: Path | None = None) -> Outcome:
    prompts = ("--train-data-path", (prompts_of or data) / "prompts.jsonl")
    reward = ("--reward-function", f"{data / 'reward.py'}:shape")
    return launch("train_rl", data, ranks, *RL, *prompts, *reward, *flags)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metrics of all steps, without times."""
    return [
        {name: value for name, value in step.items() if not name.startswith(TIMES)}
        for step in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pre-training on two replicas."""
    folder = tmp_path_factory.mktemp("base")
    launch(
        *("train_sft", data, 2, "--train-data-path", data, "--micro-batch-size", "12"),
        *(
            "--train-iters",
            "8",
            "--lr",
            "3e-3",
            "--save",
            folder,
            "--valid-data-path",
            data / "train.jsonl",
        ),
    ).succeeded()
    return folder


def test_pre_training_lowers_the_loss(base: Path) -> None:
    steps = numbers(base)
    assert steps[-1]["lm loss"] < steps[0]["lm loss"] - 0.05
    assert steps[-1]["valid/lm loss"] < steps[0]["lm loss"]


def test_layouts_train_alike_and_a_run_resumes_bit_for_bit(
    base: Path, data: Path, tmp_path: Path
) -> None:
    start = ("--pretrained-checkpoint", base, "--rl-algorithm", "flow_grpo", "--train-iters", "4")
    whole = tmp_path / "whole"
    # Validation takes the averages.
    average = ("--ema-decay", "0.5")
    valid = (*average, "--valid-data-path", data / "prompts.jsonl", "--eval-samples", "4")
    rl(data, 2, *start, *valid, "--save", whole, "--save-interval", "2").succeeded()
    steps = numbers(whole)
    assert catalogue_entries(steps[0]) >= told_of("rl", "flow-matching models")
    assert all(step["flow/log_ratio_max"] <= 1e-6 for step in steps)
    assert all(step["updates"] == 2 and step["rewards_failed"] == 0 for step in steps)
    # Many prompts, of which a replica sees those of its share, each one once.
    assert steps[0]["flow/texts_encoded"] == 4
    with Image.open(whole / "samples" / "validation_0001.png") as sheet:
        assert sheet.size[0] > 96 and sheet.size[1] > 4 * 96
    for layout in (TP2, CP2):
        other = tmp_path / layout[0]
        rl(data, 2, *start, *layout, "--save", other).succeeded()
        for ours, theirs in zip(numbers(other), steps, strict=True):
            assert ours["flow/log_ratio_max"] <= 1e-6
            assert ours["reward/mean"] == pytest.approx(theirs["reward/mean"], abs=0.05)
            assert ours["grad-norm"] == pytest.approx(theirs["grad-norm"], rel=0.05)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "iter_0000004")
    (resumed / "latest_checkpointed_iteration.txt").write_text("2")
    rl(data, 2, *start, *valid, "--save", resumed, "--load", resumed).succeeded()
    assert [s for s in numbers(resumed) if s["iteration"] > 2] == [
        {**s, "flow/texts_encoded": again["flow/texts_encoded"]}
        for s, again in zip(steps[2:], numbers(resumed)[2:], strict=True)
    ]


@pytest.mark.full(
    "tests/functional/test_flow.py::test_layouts_train_alike_and_a_run_resumes_bit_for_bit"
)
def test_fewer_validation_rows_than_replicas(base: Path, data: Path, tmp_path: Path) -> None:
    start = ("--pretrained-checkpoint", base, "--rl-algorithm", "flow_grpo", "--train-iters", "1")
    valid = ("--valid-data-path", data / "prompts.jsonl", "--eval-samples", "1")
    rl(data, 2, *start, *valid, "--save", tmp_path).succeeded()
    assert "valid/reward" in numbers(tmp_path)[0]


@pytest.mark.parametrize(
    "algorithm",
    full_only(
        "tests/functional/test_flow.py::test_an_algorithm_trains",
        ["dance_grpo", "mix_grpo", "grpo_guard", "diffusion_nft"],
        first=["diffusion_nft"],
    ),
)
def test_an_algorithm_trains(algorithm: str, base: Path, data: Path, tmp_path: Path) -> None:
    rl(
        *(data, 1, "--pretrained-checkpoint", base, "--rl-algorithm", algorithm),
        *("--train-iters", "2", "--save", tmp_path, "--grpo-kl-beta", "0.01"),
        *("--guidance-scale", "2"),
    ).succeeded()
    steps = numbers(tmp_path)
    assert len(steps) == 2
    assert all(step["kl/mean"] > 0 for step in steps), "it has left the reference"
    assert steps[0]["grad-norm"] > 0 and steps[0]["skipped_updates"] == 0


def test_a_folder_is_all_and_a_reward_that_fails_costs_its_own_pictures(
    data: Path, tmp_path: Path
) -> None:
    """Nothing is said of the model but the folder of diffusers."""
    write_broken_prompts(tmp_path / "prompts.jsonl")
    command = [
        *("-m", "megatron_longrl.train_rl", *RL, "--pretrained-checkpoint", data / "diffusers"),
        *("--train-data-path", tmp_path / "prompts.jsonl", "--rl-algorithm", "flow_grpo"),
        *("--reward-function", f"{data / 'reward.py'}:shape", "--text-max-tokens", "12"),
        *("--picture-height", "12", "--picture-width", "12"),
        *("--train-iters", "1", "--save", tmp_path / "run"),
    ]
    outcome = run([str(word) for word in command], 1, 400, cold=True).succeeded()
    (step,) = numbers(tmp_path / "run")
    assert step["rewards_failed"] == 16 and step["reward/mean"] == 0
    assert "no reward shape for picture 0" in outcome.output


def test_generated_pictures_are_those_of_diffusers(data: Path, tmp_path: Path) -> None:
    """To 1/255, of a folder about which nothing else is said."""
    from diffusers import StableDiffusion3Pipeline

    prompts = ["a red square in the top left corner", "a blue square"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts))
    pictures = generate(
        *("--pretrained-checkpoint", data / "diffusers", "--prompts", tmp_path / "prompts.txt"),
        *("--output", tmp_path / "out", "--num-samples", "2", "--eval-sampling-steps", "5"),
        *("--guidance-scale", "2", "--picture-height", "6", "--picture-width", "12"),
        *("--text-max-tokens", "12", "--seed", "9"),
    )
    assert [row["prompt"] for row in pictures] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    assert [row["sample"] for row in pictures] == [0, 1, 0, 1]
    noise = [
        noise_generator("first", 9, -2, row["prompt_number"], row["sample"]) for row in pictures
    ]
    expected = StableDiffusion3Pipeline.from_pretrained(data / "diffusers")(
        [row["prompt"] for row in pictures],
        height=6,
        width=12,
        num_inference_steps=5,
        guidance_scale=2,
        max_sequence_length=12,
        output_type="np",
        latents=torch.stack([torch.randn(4, 3, 6, generator=one) for one in noise]),
    ).images
    found = np.stack([np.asarray(Image.open(tmp_path / "out" / row["file"])) for row in pictures])
    assert np.abs(found - np.round(expected * 255)).max() <= 1
    assert found.std() > 1, "not one colour"


def generate(*flags: str | Path, ranks: int = 1) -> list[dict[str, Any]]:
    """The list of the pictures."""
    words = [str(flag) for flag in flags]
    run(["-m", "megatron_longrl.generate", *words], ranks, 400, cold=True).succeeded()
    folder = Path(words[words.index("--output") + 1])
    lines = (folder / "pictures.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.full("tests/functional/test_flow.py::test_generated_pictures_are_those_of_diffusers")
def test_a_run_is_looked_at_and_measured(base: Path, data: Path, tmp_path: Path) -> None:
    """On two replicas as on one."""
    write_prompts(tmp_path / "prompts.jsonl", combinations()[:12])
    common = ("--load", base, "--prompts", tmp_path / "prompts.jsonl")
    for ranks in (1, 2):
        pictures = generate(*common, "--output", tmp_path / f"{ranks}", ranks=ranks)
        assert len(pictures) == 12
    for row in pictures:
        one, two = (np.asarray(Image.open(tmp_path / n / row["file"])).astype(int) for n in "12")
        assert np.abs(one - two).max() <= 1
    command = [
        *("-m", "megatron_longrl.evaluate", "--load", base, "--data", data / "prompts.jsonl"),
        *("--reward-function", f"{data / 'reward.py'}:shape", "--eval-group-size", "2"),
        *("--eval-samples", "5", "--output", tmp_path / "rewards.json"),
    ]
    run([str(word) for word in command], 2, 400, cold=True).succeeded()
    told = json.loads((tmp_path / "rewards.json").read_text())
    assert (told["samples"], told["pictures"], told["rewards_failed"]) == (5, 10, 0)
    every = [one["reward"] for row in told["answers"] for one in row["responses"]]
    assert len(every) == 10 and told["reward"] == pytest.approx(sum(every) / 10)


@pytest.mark.full("tests/functional/test_flow.py::test_generated_pictures_are_those_of_diffusers")
def test_a_run_with_adapters_is_exported_with_its_pictures(data: Path, tmp_path: Path) -> None:
    from megatron_longrl.cli.convert import main as convert

    folder, size = data / "diffusers", ("--picture-height", "12", "--picture-width", "12")
    command = [
        *("-m", "megatron_longrl.train_rl", *RL, "--pretrained-checkpoint", folder, *size),
        *("--train-data-path", data / "prompts.jsonl", "--rl-algorithm", "flow_grpo"),
        *("--reward-function", f"{data / 'reward.py'}:shape", "--text-max-tokens", "12"),
        *("--train-iters", "2", "--lr", "0.5", "--lora-rank", "4", "--lora-alpha", "400"),
        *("--lora-target-modules", "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
        *("--save", tmp_path / "run"),
    ]
    run([str(word) for word in command], 1, 400, cold=True).succeeded()
    assert all(step["grad-norm"] > 0 for step in numbers(tmp_path / "run"))
    saved = ["--load-dir", str(tmp_path / "run"), "--save-dir", str(tmp_path / "merged")]
    assert convert(["--loader", "megatron", "--saver", "hf_sd3", *saved, "--verify"]) == 0
    found = {}
    for name, start in (
        ("run", ("--load", tmp_path / "run")),
        ("export", ("--pretrained-checkpoint", tmp_path / "merged", "--text-max-tokens", "12")),
        ("base", ("--pretrained-checkpoint", folder, "--text-max-tokens", "12")),
    ):
        given = (*start, *size, "--seed", "1", "--prompts", data / "prompts.jsonl")
        out = tmp_path / f"pictures of {name}"
        rows = generate(*given, "--output", out, "--micro-batch-size", "4")
        pictures = [np.asarray(Image.open(out / row["file"])).astype(int) for row in rows]
        found[name] = np.stack(pictures)
    assert np.abs(found["run"] - found["export"]).max() <= 1
    assert np.abs(found["run"] - found["base"]).max() > 2, "the adapters are no small part of it"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--rl-algorithm", "grpo"), "rl_algorithm grpo is for language models: give "),
        (("--advantage", "remax"), "advantage remax needs extra generations, "),
        (("--rewards", "accuracy"), "rewards accuracy read text: give --reward-function "),
        (("--pipeline-model-parallel-size", "2"), "pipeline_model_parallel_size (2): sd3 has one"),
        (("--micro-batch-size", "5"), "global_batch_size (8) cuts the 16 pictures of a step not"),
        (("--lora-rank", "4", "--lora-parts", "projector"), "lora_parts: one part of a flow-"),
        (("--diffusers-folder", "."), "--diffusers-folder: model_index.json cannot be read: "),
    ],
)
def test_what_cannot_be_is_told(flags: tuple[str, ...], line: str, data: Path) -> None:
    ranks = 2 if "2" in flags else 1
    train = ("--rl-algorithm", "flow_grpo", "--train-iters", "1")
    (told,) = rl(data, ranks, *train, *flags).errors
    assert told.startswith(f"error: {line}"), told
