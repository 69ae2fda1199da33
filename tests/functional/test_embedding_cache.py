"""Embeddings of a frozen encoder outlive the run: the next one encodes nothing."""

from __future__ import annotations

from pathlib import Path

from megatron_longrl.rollout.records.files import read_lines, recorded_files
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

FRAMES, PROMPTS, STEPS = 7, 4, 2
"""Frames of each video, prompts of each step, steps of an epoch."""


def responses(run: Path) -> list[list[list[int]]]:
    """Of each group of each step."""
    return [
        [response["token_ids"] for response in group["responses"]]
        for _, paths in sorted(recorded_files(run / "rollouts").items())
        for path in paths.values()
        for group in read_lines(path)[1]
    ]


def test_an_epoch_after_a_restart_encodes_nothing(
    arena: Arena, sft_run: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", read_rows(arena.data("train"))[: STEPS * PROMPTS])
    places: tuple[str | Path, ...] = (
        *("--train-data-path", data, "--pretrained-checkpoint", sft_run),
        *("--embedding-cache-dir", tmp_path / "cache", "--embedding-cache-gib", "0.1"),
    )
    steps = ("--train-iters", str(STEPS), "--save-interval", "9", "--grpo-group-size", "2")
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        arena.launch(
            "train_rl",
            *(*GRPO, *CP2, *FROZEN, *places, *steps, "--save", run),
            watched={"WATCH_FRAMES": str(run / "frames")},
        ).succeeded()
    first, second = map(metrics_of, runs)
    assert curve(first, "frames_encoded") == [PROMPTS * FRAMES] * STEPS
    assert curve(second, "frames_encoded") == curve(second, "frames_decoded") == [0] * STEPS
    assert curve(second, "embeddings_from_disk") == [PROMPTS] * STEPS
    assert len(list((runs[0] / "frames").glob("*.jsonl"))) == 2, "both ranks have encoded"
    assert not list((runs[1] / "frames").glob("*.jsonl")), "and neither again"
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == STEPS * PROMPTS

    generated = responses(runs[0])
    assert len(generated) == STEPS * PROMPTS and responses(runs[1]) == generated
    counts = {"frames_encoded", "frames_decoded", "embeddings_from_disk"}
    for before, after in zip(first, second, strict=True):
        assert {k: v for k, v in after.items() if k not in counts} == {
            k: v for k, v in before.items() if k not in counts
        }
        assert before["prompt_bytes_per_prompt"] > 0 and before["prefix_cache_resets"] == 1
