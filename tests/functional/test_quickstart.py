"""Every ``--rl-algorithm`` on the quickstart's data and model: finite, and without early warnings.

``LONGRL_ALL_ALGORITHMS=1`` runs it. ``LONGRL_QUICKSTART=FOLDER`` starts from the data and the SFT
checkpoint that ``examples/quickstart.sh FOLDER`` has left; else fewer clips and a shorter SFT are
made here.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from megatron_longrl.config.bundles import BUNDLES
from megatron_longrl.training.watch import SIGNS, WINDOW
from tests.functional.launches import ROOT, metrics_of, run

RECIPES = ROOT / "examples" / "quickstart"
STEPS = WINDOW + 1
"""Early warnings compare the last ten steps with the first."""

FLAGS: dict[str, tuple[str, ...]] = {"ppo": ("--critic-warmup-steps", "3")}

pytestmark = pytest.mark.skipif(
    not os.environ.get("LONGRL_ALL_ALGORITHMS"), reason="takes minutes: LONGRL_ALL_ALGORITHMS=1"
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, ``tokenizer.model`` and ``sft``."""
    if "LONGRL_QUICKSTART" in os.environ:
        return Path(os.environ["LONGRL_QUICKSTART"]).resolve()
    folder = tmp_path_factory.mktemp("quickstart")
    data, tokenizer = folder / "data", folder / "tokenizer.model"
    cups = ["-m", "megatron_longrl.data.arena.cups", "--output", str(data), "--slip", "0.1"]
    clips = ["--clips", "1000", "--sft-clips", "800", "--heldout-clips", "16", "--seed", "1234"]
    run([*cups, *clips], 1, 240).succeeded()
    sft = str(data / "sft.jsonl")
    tokens = ["tools/train_tokenizer.py", "--data", sft, "--symbols", "cups"]
    run([*tokens, "--output", str(tokenizer)], 1, 60).succeeded()
    launch(folder, "train_sft", "sft", "--train-data-path", sft, "--train-iters", "150")
    return folder


def launch(folder: Path, program: str, recipe: str, *flags: str, save: Path | None = None) -> str:
    """What a program said."""
    command = ["-m", f"megatron_longrl.{program}", "--config", str(RECIPES / f"{recipe}.yaml")]
    command += ["--tokenizer-model", str(folder / "tokenizer.model"), "--seed", "1234"]
    command += ["--save", str(save or folder / recipe), *flags]
    return run(command, 2, 300).succeeded().output


@pytest.mark.parametrize("algorithm", BUNDLES)
def test_an_algorithm_trains(quickstart: Path, tmp_path: Path, algorithm: str) -> None:
    said = launch(
        *(quickstart, "train_rl", "grpo"),
        *("--train-data-path", str(quickstart / "data" / "train.jsonl")),
        *("--pretrained-checkpoint", str(quickstart / "sft")),
        *("--rl-algorithm", algorithm, "--train-iters", str(STEPS), *FLAGS.get(algorithm, ())),
        save=tmp_path / "run",
    )
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == STEPS
    for step in steps:
        assert all(math.isfinite(value) for value in step.values()), step
        assert step["skipped_updates"] == 0
    trained = [step for step in steps if "grad-norm" in step and step["updates"]]
    assert len(trained) >= STEPS - 3
    assert max(step["grad-norm"] for step in trained) > 0
    assert [sign.name for sign in SIGNS if f": {sign.name}: " in said] == []
