"""Pre-training and reinforcement learning of a tiny Stable Diffusion 3, as a user launches them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
    valid = ("--valid-data-path", data / "prompts.jsonl", "--eval-samples", "4")
    rl(data, 2, *start, *valid, "--save", whole, "--save-interval", "2").succeeded()
    steps = numbers(whole)
    assert catalogue_entries(steps[0]) >= told_of("rl", "flow-matching models")
    assert all(step["flow/log_ratio_max"] <= 1e-6 for step in steps)
    assert all(step["updates"] == 2 and step["rewards_failed"] == 0 for step in steps)
    # Twelve prompts, of which a replica sees those of its share, each one once.
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
    assert steps[0]["kl/mean"] < steps[1]["kl/mean"]
    assert steps[0]["grad-norm"] > 0 and steps[0]["skipped_updates"] == 0


def test_a_reward_that_fails_costs_its_own_pictures(base: Path, data: Path, tmp_path: Path) -> None:
    write_broken_prompts(tmp_path / "prompts.jsonl")
    outcome = rl(
        *(data, 1, "--pretrained-checkpoint", base, "--rl-algorithm", "flow_grpo"),
        *("--train-iters", "1", "--save", tmp_path / "run"),
        prompts_of=tmp_path,
    ).succeeded()
    (step,) = numbers(tmp_path / "run")
    assert step["rewards_failed"] == 16 and step["reward/mean"] == 0
    assert "no reward shape for picture 0" in outcome.output


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--rl-algorithm", "grpo"), "rl_algorithm grpo is for language models: give "),
        (("--advantage", "remax"), "advantage remax needs generations of its own, which pictures "),
        (("--rewards", "accuracy"), "rewards accuracy read text: give --reward-function "),
        (("--pipeline-model-parallel-size", "2"), "pipeline_model_parallel_size (2): sd3 has one"),
        (("--micro-batch-size", "5"), "global_batch_size (8) cuts the 16 pictures of a step not"),
        (("--lora-rank", "4"), "lora_rank (4): sd3 has no adapters yet"),
        (("--diffusers-folder", "."), "--diffusers-folder: model_index.json cannot be read: "),
    ],
)
def test_what_cannot_be_is_told(flags: tuple[str, ...], line: str, data: Path) -> None:
    ranks = 2 if "2" in flags else 1
    train = ("--rl-algorithm", "flow_grpo", "--train-iters", "1")
    (told,) = rl(data, ranks, *train, *flags).errors
    assert told.startswith(f"error: {line}"), told
