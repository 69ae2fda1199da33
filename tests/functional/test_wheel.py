"""The programs of an installed package, in a folder outside of the clone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.functional.launches import metrics_of
from tests.functional.test_first_use import SMALL
from tests.wheel import build_wheel, run_from

pytestmark = pytest.mark.full(
    "tests/unit/test_wheel.py::test_a_recipe_and_its_base_are_found_by_name"
)

RECIPE = ("--config", "qwen2_5_vl/grpo.yaml")
MRSP = ("--multimodal-sequence-parallel-size", "2")
STEP = (*RECIPE, *MRSP, *SMALL, "--train-iters", "1", "--rollout-memory-gib", "1")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def folder(
    site: Path, stock_model: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A working folder with the model, the data and an SFT run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "MODEL").symlink_to(stock_model)
    (folder / "DATA").symlink_to(clips.parent)
    start = ("--pretrained-checkpoint", "MODEL", "--train-data-path", "DATA", "--save", "sft")
    longrl(site, folder, "train-sft", *start)
    return folder


def longrl(site: Path, folder: Path, *arguments: str) -> str:
    return python(site, folder, "-m", "megatron_longrl", *arguments)


def python(site: Path, folder: Path, *command: str) -> str:
    """What a program prints; fails where the program does."""
    done = run_from(site, folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rl_with_a_recipe_by_name_then_resumed_evaluated_and_exported(
    site: Path, folder: Path
) -> None:
    data = ("--train-data-path", "DATA")
    start = ("--pretrained-checkpoint", "sft", *data, "--save", "grpo", "--nproc-per-node", "2")
    longrl(site, folder, "train-rl", *start, *STEP)
    longrl(site, folder, "train-rl", "--load", "grpo", "--train-iters", "2")
    assert [step["iteration"] for step in metrics_of(folder / "grpo")] == [1, 2]
    longrl(site, folder, "evaluate", "--load", "grpo", "--data", "DATA", "--output", "a.json")
    assert len(json.loads((folder / "a.json").read_text())["answers"]) == 6
    flags = ("--load-dir", "grpo", "--save-dir", "exported")
    longrl(site, folder, "convert", "--loader", "megatron", "--saver", "hf", *flags)
    assert "qwen2_5_vl" in longrl(site, folder, "inspect", "exported")
    both = ("--hf-dir", "exported", "--megatron-dir", "grpo")
    row = ("--video", "DATA/0.mp4", "--prompt", "Which colour?")
    # Logits reach 19: in float32 transformers itself is 4e-5 from float64 there.
    longrl(site, folder, "verify", *both, *row, "--tolerance", "1e-3")


def test_torchrun_starts_its_modules(site: Path, folder: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    start = ("--pretrained-checkpoint", "sft", "--train-data-path", "DATA", "--save", "torchrun")
    python(site, folder, *launcher, "-m", "megatron_longrl.train_rl", *start, *STEP)
    assert len(metrics_of(folder / "torchrun")) == 1


def test_from_python(site: Path, folder: Path) -> None:
    program = (
        "from megatron_longrl.api import evaluate, train_rl, train_sft\n"
        "data = dict(train_data_path='DATA', train_iters=1)\n"
        "print(len(train_sft(pretrained_checkpoint='MODEL', save='api/sft', **data)))\n"
        "small = dict(rollout_max_tokens=16, grpo_prompts_per_step=2, grpo_group_size=2)\n"
        "recipe = dict(config='qwen2_5_vl/grpo.yaml', rollout_memory_gib=1)\n"
        "start = dict(pretrained_checkpoint='api/sft', save='api/grpo')\n"
        "print(len(train_rl(**start, **recipe, **small, **data)))\n"
        "print(len(evaluate(load='api/grpo', data='DATA')['answers']))\n"
    )
    printed = python(site, folder, "-c", program)
    assert [line for line in printed.splitlines() if line.isdigit()] == ["1", "1", "6"]


def test_looking_at_data(site: Path, folder: Path) -> None:
    longrl(site, folder, "check", "DATA", "--output", "check.json")
    assert json.loads((folder / "check.json").read_text())["usable"] == 6
    checked = ("--pretrained-checkpoint", "MODEL", "--rollout-max-tokens", "16")
    longrl(site, folder, "check", "DATA", *RECIPE, *checked)
    longrl(site, folder, "frames", "DATA/0.mp4", "--video-fps", "2", "--output", "frames")
    assert (folder / "frames/frame_00000.png").exists()
    (folder / "responses.jsonl").write_text('{"response": "<answer>A</answer>"}\n' * 6)
    rewards = ("DATA/train.jsonl", "responses.jsonl", "--rewards", "accuracy")
    scored = longrl(site, folder, "score", *rewards).splitlines()
    assert [json.loads(line)["accuracy"] for line in scored] == [1, 0] * 3
