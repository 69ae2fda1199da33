"""Embeddings of a frozen encoder outlive the run: the next one encodes nothing."""

from __future__ import annotations

from pathlib import Path

from megatron_longrl.rollout.records.files import read_lines, recorded_files
from tests.functional.launches import Arena, curve, metrics_of

FRAMES, PROMPTS, STEPS = 7, 4, 5
"""Frames of each video, prompts of each step, steps."""


def responses(run: Path) -> list[list[list[int]]]:
    """Of each group of each step."""
    return [
        [response["token_ids"] for response in group["responses"]]
        for _, paths in sorted(recorded_files(run / "rollouts").items())
        for path in paths.values()
        for group in read_lines(path)[1]
    ]


def test_a_run_after_a_restart_encodes_nothing(
    arena: Arena, rl_run: Path, resumed_rl_run: Path
) -> None:
    """tests/functional/test_resume.py compares all other metrics."""
    first, second = metrics_of(rl_run), metrics_of(resumed_rl_run)
    assert curve(first, "frames_encoded") == [PROMPTS * FRAMES] * STEPS
    assert curve(second, "frames_encoded") == curve(second, "frames_decoded") == [0] * STEPS
    assert curve(second, "embeddings_from_disk") == [PROMPTS] * STEPS
    assert len(list((rl_run / "frames").glob("*.jsonl"))) == 2, "both ranks have encoded"
    assert not list((resumed_rl_run / "frames").glob("*.jsonl")), "and neither again"
    assert len(list(arena.embeddings.glob("*/*.safetensors"))) == STEPS * PROMPTS

    generated = responses(rl_run)
    assert len(generated) == STEPS * PROMPTS and responses(resumed_rl_run) == generated
    for step in second:
        assert step["prompt_bytes_per_prompt"] > 0 and step["prefix_cache_resets"] == 1
