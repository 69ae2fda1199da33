"""One data set, one SFT run and one RL run, which the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.functional.launches import CP2, SFT, Arena, rl_flags, run


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """Moving-cups clips of eight frames, and a tokenizer."""
    folder = tmp_path_factory.mktemp("arena")
    clips = ["--clips", "72", "--sft-clips", "32", "--heldout-clips", "16", "--frames", "8"]
    swaps = ["--swaps", "2", "--min-swaps", "1", "--seed", "5", "--workers", "1"]
    cups = ["-m", "megatron_longrl.data.arena.cups", "--output", str(folder / "data")]
    run([*cups, *clips, *swaps], 1, 60).succeeded()
    made = Arena(folder)
    tokens = ["tools/train_tokenizer.py", "--data", made.data("sft"), "--symbols", "cups"]
    run([*tokens, "--output", made.tokenizer], 1, 60).succeeded()
    return made


@pytest.fixture(scope="session")
def sft_run(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 steps of SFT over two ranks of MR-SP, tower and projector trained; checkpoints 40, 60."""
    folder = tmp_path_factory.mktemp("sft")
    data = ("--train-data-path", arena.data("sft"))
    arena.launch("train_sft", *SFT, *CP2, *data, "--save", folder).succeeded()
    return folder


@pytest.fixture(scope="session")
def rl_run(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 steps of GRPO over two ranks of MR-SP from ``sft_run``; checkpoints 2, 4 and 5.

    ``frames/`` in its folder tells what the encoder was given, ``output.txt`` what was printed.
    """
    folder = tmp_path_factory.mktemp("rl")
    flags = rl_flags(arena, sft_run)
    watched = {"WATCH_FRAMES": str(folder / "frames")}
    outcome = arena.launch("train_rl", *flags, *CP2, "--save", folder, watched=watched)
    (folder / "output.txt").write_text(outcome.succeeded().output, encoding="utf-8")
    return folder
