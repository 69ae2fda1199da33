"""Runs log what the catalogue of metrics says, each of its keys, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.observability.metrics_file import read_metrics
from tests.functional.catalogue import catalogue_entries, told_of
from tests.functional.launches import FROZEN, SFT, Arena, read_rows, write_rows
from tests.unit.rewards.endpoint import serve

CODE = """
def odd(response):
    return {"score": len(response) % 2, "half": 0.5}
"""
ALGORITHM = (
    *("--rl-algorithm", "ppo", "--grpo-kl-beta", "0.01", "--kl-target", "0.1"),
    *("--dynamic-sampling", "--filter-metric", "reward", "--dynamic-sampling-max-tries", "2"),
    *("--rollout-step-tokens", "8", "--rollout-correction", "token"),
    *("--shuffled-frames-bonus", "0.1"),
)
"""Everything that adds metrics."""


@pytest.fixture(scope="module")
def rl_keys(arena: Arena, sft_run: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Keys of a step with questions of two kinds, some of them without a video and of a
    benchmark."""
    folder = tmp_path_factory.mktemp("metrics")
    rows = read_rows(arena.data("train"))[:2]
    spoken = [
        {
            "problem_id": f"text {n}",
            "problem_type": "text",
            "problem": row["problem"],
            "answer": "A",
            "benchmark": "longvideo_reason",
            "categories": {"problem_type": "text"},
        }
        for n, row in enumerate(rows)
    ]
    mixed = [row for pair in zip(rows, spoken, strict=True) for row in pair]
    data = write_rows(folder / "rows.jsonl", mixed)
    (folder / "mine.py").write_text(CODE)
    with serve(lambda prompt, number: "Score: 0.5") as endpoint:
        arena.launch(
            *("train_rl", *FROZEN, *ALGORITHM, "--pretrained-checkpoint", sft_run),
            *("--train-data-path", data, "--valid-data-path", data, "--save", folder / "run"),
            *("--train-iters", "1", "--lr", "1e-3", "--grpo-prompts-per-step", "4"),
            *("--grpo-group-size", "2", "--reward-function", f"{folder}/mine.py:odd"),
            *("--rewards", "judge", "--judge-url", endpoint.url, "--judge-model", "m"),
            ranks=1,
        ).succeeded()
    return keys_of(folder / "run")


@pytest.fixture(scope="module")
def sft_keys(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Keys of a step with validation."""
    folder = tmp_path_factory.mktemp("metrics")
    data = ("--train-data-path", arena.data("sft"), "--valid-data-path", arena.data("sft"))
    sizes = ("--train-iters", "1", "--eval-samples", "4", "--global-batch-size", "16")
    arena.launch("train_sft", *SFT, *data, *sizes, "--save", folder, ranks=1).succeeded()
    return keys_of(folder)


def keys_of(run: Path) -> set[str]:
    return {key for step in read_metrics(run / "metrics.jsonl") for key in step}


def test_what_rl_logs(rl_keys: set[str]) -> None:
    assert catalogue_entries(rl_keys) == told_of("rl")


def test_what_sft_logs(sft_keys: set[str]) -> None:
    assert catalogue_entries(sft_keys) == told_of("sft")
