"""Programs with adapters: RL learns, rollouts follow, a killed run goes on, exports are whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.functional.launches import CP2, FROZEN, GRPO, ROOT, Arena, curve, metrics_of
from tests.functional.test_resume import kill_and_resume

LORA = ("--lora-rank", "4", "--lr", "3e-3", "--grpo-kl-beta", "0.01")


@pytest.fixture(scope="module")
def lora_run(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 steps of GRPO that train adapters of the language model alone; checkpoints 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("lora")
    arena.launch("train_rl", *flags_of(arena, sft_run), *CP2, "--save", folder).succeeded()
    return folder


def flags_of(arena: Arena, sft_run: Path) -> tuple[str, ...]:
    data = ("--train-data-path", arena.data("train"), "--pretrained-checkpoint", str(sft_run))
    return (*GRPO, *FROZEN, *data, *LORA)


def test_the_policy_moves_and_the_rollouts_follow(lora_run: Path) -> None:
    steps = metrics_of(lora_run)
    divergence = curve(steps, "kl/mean")
    # Adapters add nothing at first, and the reference is the model without them.
    assert divergence[0] == pytest.approx(0, abs=1e-9)
    assert max(divergence[1:]) > 1e-4
    # vLLM has the merged weights of every step: old ones would be as far off as the policy moves.
    assert max(curve(steps, "logprob_gap/max")) < 1e-2
    assert min(curve(steps, "grad-norm")) > 0


def test_a_killed_run_goes_on(arena: Arena, sft_run: Path, lora_run: Path, tmp_path: Path) -> None:
    flags = (*flags_of(arena, sft_run), *CP2)
    kill_and_resume(arena, "train_rl", flags, tmp_path / "run", at="0:3")
    assert metrics_of(tmp_path / "run") == metrics_of(lora_run)


def test_other_adapters_are_one_line(
    arena: Arena, sft_run: Path, lora_run: Path, tmp_path: Path
) -> None:
    places = ("--load", str(lora_run), "--save", str(tmp_path / "run"))
    flags = (*flags_of(arena, sft_run), "--lora-rank", "2", *places)
    outcome = arena.launch("train_rl", *flags, ranks=1)
    assert outcome.status == 2
    (line,) = outcome.errors
    assert "lora_rank 4 there, 2 in the configuration" in line


def test_exports_of_the_run(lora_run: Path, sft_run: Path, tmp_path: Path) -> None:
    """The SFT model with the adapters is the run's model: the saver checks every tensor."""

    def convert(*flags: object) -> str:
        tool = [sys.executable, str(ROOT / "tools/checkpoint/convert.py"), "--loader", "megatron"]
        command = [*tool, *map(str, flags), "--verify"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    convert("--saver", "hf", "--load-dir", sft_run, "--save-dir", tmp_path / "base")
    convert("--saver", "hf", "--load-dir", lora_run, "--save-dir", tmp_path / "merged")
    said = convert(
        *("--saver", "peft", "--base-dir", tmp_path / "base"),
        *("--load-dir", lora_run, "--save-dir", tmp_path / "adapter"),
    )
    assert "verified" in said
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["llm"]
    adapters = load_file(tmp_path / "adapter/llm/adapter_model.safetensors")
    base, merged = (load_file(tmp_path / f / "llm/model.safetensors") for f in ("base", "merged"))
    changed = {name for name, tensor in base.items() if not tensor.equal(merged[name])}
    assert changed == {
        name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        for name in adapters
        if "lora_A" in name
    }


def test_evaluation_of_the_run(arena: Arena, lora_run: Path, tmp_path: Path) -> None:
    """With no word of adapters: the checkpoint's are merged."""
    data = ("--data", arena.data("heldout"), "--output", tmp_path / "answers.json")
    arena.launch("evaluate", *data, "--load", lora_run, ranks=1).succeeded()
    assert (tmp_path / "answers.json").exists()
