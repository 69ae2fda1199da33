"""Programs with adapters: they learn, rollouts follow, a killed run goes on, exports are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.functional.launches import (
    CP2,
    ROOT,
    SFT,
    TP2,
    Arena,
    curve,
    kill_and_resume,
    metrics_of,
    rl_flags,
    run,
)
from tests.runner.tiers import full_only

RANK = ("--lora-rank", "4", "--lr", "3e-3")
LORA = (*RANK, "--grpo-kl-beta", "0.01")
EVERY_PART = ("--lora-parts", "language_model", "projector", "vision_tower")
GAP = 1e-4
"""Between the trainer's and vLLM's log-probabilities of a token, on average."""


@pytest.fixture(scope="module")
def lora_run(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 steps of GRPO that train adapters of the language model alone; checkpoints 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("lora")
    flags = (*rl_flags(arena, sft_run), *LORA, *CP2)
    arena.launch("train_rl", *flags, "--save", folder).succeeded()
    return folder


@pytest.fixture(scope="module")
def lora_sft_run(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 steps of SFT that train adapters of every part."""
    folder = tmp_path_factory.mktemp("lora-sft")
    data = ("--train-data-path", arena.data("sft"), "--pretrained-checkpoint", str(sft_run))
    flags = (*SFT, *TP2, *data, *RANK, *EVERY_PART, "--train-iters", "10")
    arena.launch("train_sft", *flags, "--save", folder).succeeded()
    return folder


def test_the_policy_moves_and_the_rollouts_follow(lora_run: Path) -> None:
    steps = metrics_of(lora_run)
    divergence = curve(steps, "kl/mean")
    # Adapters add nothing at first, and the reference is the model without them.
    assert divergence[0] == 0
    assert max(divergence[1:]) > 1e-4
    # vLLM has the merged weights of every step: old ones would be as far off as the policy moves.
    assert max(curve(steps, "rollout_corr/logprob_diff_mean")) <= GAP
    assert min(curve(steps, "grad-norm")) > 0


@pytest.mark.full("tests/distributed/test_rl_resume.py::test_an_interrupted_run")
def test_a_critic_learns_beside_adapters_and_the_reference_moves(
    arena: Arena, sft_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    algorithm = ("--rl-algorithm", "ppo", "--kl-type", "full", "--ref-reset-interval", "2")
    flags = (*rl_flags(arena, sft_run), *LORA, *EVERY_PART, *algorithm, *TP2)
    trained = ("--no-freeze-vision-tower", "--no-freeze-projector")
    arena.launch("train_rl", *flags, *trained, "--save", folder).succeeded()
    steps = metrics_of(folder)
    divergence = curve(steps, "kl/mean")
    # The policy is its own reference before the first, third and fifth step.
    assert [abs(value) < 1e-6 for value in divergence] == [True, False, True, False, True]
    assert curve(steps, "critic/loss")[-1] < curve(steps, "critic/loss")[0]
    assert max(curve(steps, "rollout_corr/logprob_diff_mean")) <= GAP


@pytest.mark.full("tests/distributed/test_lora.py::test_loss_and_gradients")
def test_supervised_training(lora_sft_run: Path) -> None:
    losses = curve(metrics_of(lora_sft_run), "lm loss")
    assert losses[-1] < losses[0]


@pytest.mark.full("tests/distributed/test_lora.py::test_a_run_goes_on_at_another_layout")
def test_a_killed_run_goes_on(arena: Arena, sft_run: Path, lora_run: Path, tmp_path: Path) -> None:
    flags = (*rl_flags(arena, sft_run), *LORA, *CP2)
    kill_and_resume(arena, "train_rl", flags, tmp_path / "run", at="0:3")
    assert metrics_of(tmp_path / "run") == metrics_of(lora_run)


def test_other_adapters_are_one_line(
    arena: Arena, sft_run: Path, lora_run: Path, tmp_path: Path
) -> None:
    places = ("--load", str(lora_run), "--save", str(tmp_path / "run"))
    flags = (*rl_flags(arena, sft_run), *LORA, "--lora-rank", "2", *places)
    outcome = arena.launch("train_rl", *flags, ranks=1)
    assert outcome.status == 2
    (line,) = outcome.errors
    assert "lora_rank 4 there, 2 in the configuration" in line


@pytest.mark.parametrize(
    ("fixture", "parts"),
    full_only(
        "tests/functional/test_lora.py::test_exports_of_a_run",
        [
            pytest.param("lora_run", ["llm"], id="lora_run"),
            pytest.param(
                "lora_sft_run", ["llm", "mm_projector", "vision_tower"], id="lora_sft_run"
            ),
        ],
        ["lora_run"],
    ),
)
def test_exports_of_a_run(
    fixture: str, parts: list[str], sft_run: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The SFT model with the adapters is the run's model: the saver checks every tensor."""

    def convert(*flags: object) -> str:
        tool = [str(ROOT / "tools/checkpoint/convert.py"), "--loader", "megatron"]
        return run([*tool, *map(str, flags), "--verify"], 1, 120).succeeded().output

    folder: Path = request.getfixturevalue(fixture)
    convert("--saver", "hf", "--load-dir", sft_run, "--save-dir", tmp_path / "base")
    convert("--saver", "hf", "--load-dir", folder, "--save-dir", tmp_path / "merged")
    said = convert(
        *("--saver", "peft", "--base-dir", tmp_path / "base"),
        *("--load-dir", folder, "--save-dir", tmp_path / "adapter"),
    )
    assert "verified" in said
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == parts
    for part in parts:
        adapters = load_file(tmp_path / "adapter" / part / "adapter_model.safetensors")
        base, merged = (
            load_file(tmp_path / whole / part / "model.safetensors") for whole in ("base", "merged")
        )
        changed = {name for name, tensor in base.items() if not tensor.equal(merged[name])}
        stems = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in adapters}
        ours = {name for name in base if name.removesuffix(".weight").endswith(tuple(stems))}
        assert changed == ours and len(ours) == len(adapters) // 2


@pytest.mark.full("tests/functional/test_evaluate.py::test_a_sweep")
def test_evaluation_of_the_run(arena: Arena, lora_run: Path, tmp_path: Path) -> None:
    """With no word of adapters: the checkpoint's are merged."""
    data = ("--data", arena.data("heldout"), "--output", tmp_path / "answers.json")
    arena.launch("evaluate", *data, "--load", lora_run, ranks=1).succeeded()
    assert (tmp_path / "answers.json").exists()
