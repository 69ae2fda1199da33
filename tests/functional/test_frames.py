"""How often frames go through the vision encoder, as a hook in it sees them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.functional.launches import (
    CP2,
    FROZEN,
    GRPO,
    Arena,
    curve,
    metrics_of,
    read_rows,
    write_rows,
)
from tests.runner.tiers import full_only

FRAMES = 7
"""Of each video, after sampling."""
PROMPTS = 4
"""Of each step."""


def calls(folder: Path) -> list[dict[str, Any]]:
    """What the encoder was given, on all ranks: step, with_grad, frames."""
    files = sorted(folder.glob("*.jsonl"))
    assert len(files) == 2, "both ranks encode"
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def frames_by_step(seen: list[dict[str, Any]], with_grad: bool) -> dict[int, list[str]]:
    """Hashes of all frames that any rank has encoded, by step."""
    steps: dict[int, list[str]] = {}
    for call in seen:
        if call["with_grad"] == with_grad:
            steps.setdefault(call["step"], []).extend(call["frames"])
    return steps


def test_once_per_prompt_for_eight_responses(rl_run: Path) -> None:
    """The shared run: five steps of four prompts and eight responses, all videos new."""
    encoded = frames_by_step(calls(rl_run / "frames"), with_grad=False)
    assert {step: len(frames) for step, frames in encoded.items()} == dict.fromkeys(
        range(5), PROMPTS * FRAMES
    )
    assert curve(metrics_of(rl_run), "frames_encoded") == [PROMPTS * FRAMES] * 5


def run(arena: Arena, sft_run: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    """GRPO with two responses on eight rows, so that the third step begins a second epoch."""
    data = write_rows(folder / "rows.jsonl", read_rows(arena.data("train"))[: 2 * PROMPTS])
    places: tuple[str | Path, ...] = (
        "--train-data-path",
        data,
        "--pretrained-checkpoint",
        sft_run,
        "--save",
        folder,
    )
    steps = ("--train-iters", "4", "--save-interval", "4", "--grpo-group-size", "2")
    arena.launch(
        "train_rl",
        *(*GRPO, *CP2, *places, *steps, *flags),
        watched={"WATCH_FRAMES": str(folder / "frames")},
    ).succeeded()
    return calls(folder / "frames")


def test_not_again_in_the_second_epoch(arena: Arena, sft_run: Path, tmp_path: Path) -> None:
    seen = run(arena, sft_run, tmp_path, *FROZEN)
    assert not frames_by_step(seen, with_grad=True)
    encoded = frames_by_step(seen, with_grad=False)
    assert {step: len(frames) for step, frames in encoded.items()} == {0: 28, 1: 28}
    assert curve(metrics_of(tmp_path), "frames_encoded") == [28, 28, 0, 0]
    assert curve(metrics_of(tmp_path), "frames_decoded") == [28, 28, 0, 0]


@pytest.mark.parametrize(
    "chunk",
    full_only(
        "tests/functional/test_frames.py::test_a_trained_tower_sees_each_frame_once_per_step",
        [5, 64],
        [5],
    ),
)
def test_a_trained_tower_sees_each_frame_once_per_step(
    arena: Arena, sft_run: Path, tmp_path: Path, chunk: int
) -> None:
    """With a graph where a rank's 14 frames are one chunk; else again with one for its gradient."""
    seen = run(arena, sft_run, tmp_path, "--encoder-chunk-frames", str(chunk))
    encoded, again = (frames_by_step(seen, with_grad=flag) for flag in (False, True))
    if chunk >= PROMPTS * FRAMES // 2:
        assert not encoded
        encoded = again
    counts = {step: len(frames) for step, frames in encoded.items()}
    assert counts == dict.fromkeys(range(4), PROMPTS * FRAMES)
    for step, frames in encoded.items():
        assert Counter(frames) == Counter(again[step])
    # Both epochs have the same frames: none was left out for another.
    first, second = (Counter(encoded[a] + encoded[a + 1]) for a in (0, 2))
    assert first == second
    assert curve(metrics_of(tmp_path), "frames_encoded") == [PROMPTS * FRAMES] * 4


@pytest.mark.parametrize("rank", [0, 1])
def test_both_ranks_take_their_share(rl_run: Path, rank: int) -> None:
    """Stage 1 splits 28 frames a step in two halves."""
    lines = (rl_run / "frames" / f"{rank}.jsonl").read_text().splitlines()
    assert sum(len(json.loads(line)["frames"]) for line in lines) == 5 * PROMPTS * FRAMES // 2
