"""One data set, one SFT run and one RL run, which the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import stock_folders
from tests.functional.clips import write_clip
from tests.functional.launches import (
    CP2,
    SFT,
    Arena,
    kill_and_resume,
    rl_flags,
    run,
    write_rows,
)
from tests.functional.made_once import made_once


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """Moving-cups clips of eight frames, and a tokenizer."""

    def make(folder: Path) -> None:
        clips = ["--clips", "72", "--sft-clips", "32", "--heldout-clips", "16", "--frames", "8"]
        swaps = ["--swaps", "2", "--min-swaps", "1", "--seed", "5", "--workers", "1"]
        cups = ["-m", "megatron_longrl.arena.cups", "--output", str(folder / "data")]
        run([*cups, *clips, *swaps], 1, 60).succeeded()
        made = Arena(folder)
        tokens = ["tools/train_tokenizer.py", "--data", made.data("sft"), "--symbols", "cups"]
        run([*tokens, "--output", made.tokenizer], 1, 60).succeeded()

    return Arena(made_once(tmp_path_factory, "arena", make))


@pytest.fixture(scope="session")
def sft_run(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 steps of SFT over two ranks of MR-SP, tower and projector trained; checkpoints 40, 60."""

    def make(folder: Path) -> None:
        data = ("--train-data-path", arena.data("sft"))
        arena.launch("train_sft", *SFT, *CP2, *data, "--save", folder, cold=True).succeeded()

    return made_once(tmp_path_factory, "sft", make)


@pytest.fixture(scope="session")
def rl_run(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 steps of GRPO over two ranks of MR-SP from ``sft_run``; checkpoints 2, 4 and 5.

    ``frames/`` in its folder tells what the encoder was given, ``output.txt`` what was printed; in
    ``arena.embeddings`` it leaves what it has encoded.
    """

    def make(folder: Path) -> None:
        flags = (*rl_flags(arena, sft_run), *arena.embedding_cache)
        watched = {"WATCH_FRAMES": str(folder / "frames")}
        places = ("--save", folder)
        outcome = arena.launch("train_rl", *flags, *CP2, *places, watched=watched, cold=True)
        (folder / "output.txt").write_text(outcome.succeeded().output, encoding="utf-8")

    return made_once(tmp_path_factory, "rl", make)


@pytest.fixture(scope="session")
def resumed_rl_run(
    arena: Arena, sft_run: Path, rl_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """``rl_run`` once more, killed in its fourth step and started again, with the embeddings that
    ``rl_run`` has left."""

    def make(folder: Path) -> None:
        flags = (*rl_flags(arena, sft_run), *arena.embedding_cache, *CP2)
        watched = {"WATCH_FRAMES": str(folder / "frames")}
        kill_and_resume(arena, "train_rl", flags, folder, "0:3", watched)

    return made_once(tmp_path_factory, "resumed", make)


@pytest.fixture(scope="session")
def stock_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL as transformers saves it."""
    return stock_folders.write(tmp_path_factory.mktemp("stock"), "qwen2_5_vl")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips with a question each, in a folder of their own."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(6):
        write_clip(folder / f"{number}.mp4", number % 2, 12 + number)
        question = "Which colour is it?\nA. red\nB. green"
        rows.append({"problem": question, "answer": "AB"[number % 2], "videos": [f"{number}.mp4"]})
    return write_rows(folder / "train.jsonl", rows)
