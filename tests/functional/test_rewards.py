"""Rewards that fail in every way they can: the steps complete, and the metrics say so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.functional.launches import (
    CP2,
    FROZEN,
    ROOT,
    Arena,
    curve,
    metrics_of,
    read_rows,
    write_rows,
)
from tests.runner.tiers import full_only
from tests.unit.rewards.endpoint import serve

CODE = """
import os, sys, time

def odd(response, metadata, seconds):
    print("a line of the function's own")
    kind = metadata["kind"]
    if kind == "sleep":
        time.sleep(seconds)
    if kind == "raise":
        raise ValueError("this row is bad")
    if kind == "crash":
        os._exit(7)
    if kind == "exit":
        sys.exit(8)
    return {"nan": float("nan"), "text": "1.0"}.get(kind, {"score": len(response) % 7, "half": 0.5})

def whole(responses, metadata):
    return [0.0] * (1 if metadata[0]["kind"] == "length" else len(responses))
"""
FAILING = ("sleep", "raise", "crash", "exit", "nan", "text", "length", "judge")
N = 2


@pytest.mark.parametrize(
    "layout",
    full_only("tests/functional/test_rewards.py::test_a_run_of_two_steps", ["CP2", "DP2"], ["CP2"]),
)
def test_a_run_of_two_steps(arena: Arena, sft_run: Path, tmp_path: Path, layout: str) -> None:
    """Each step has one row of each kind, and two that are fine."""
    kinds = [*FAILING, "fine", "fine too"]
    rows = read_rows(arena.data("train"))[: len(kinds)]
    data = write_rows(
        tmp_path / "rows.jsonl",
        [
            {**row, "kind": kind, "problem": f"{row['problem']}\n({kind})"}
            for row, kind in zip(rows, kinds, strict=True)
        ],
    )
    (tmp_path / "mine.py").write_text(CODE)

    def judge(prompt: str, number: int) -> Any:
        return "I cannot tell." if "(judge)" in prompt else "Score: 0.5"

    with serve(judge) as endpoint:
        outcome = arena.launch(
            *("train_rl", *FROZEN, *(CP2 if layout == "CP2" else ())),
            *("--train-iters", "2", "--lr", "1e-3", "--micro-batch-size", "2"),
            *("--grpo-prompts-per-step", str(len(kinds)), "--grpo-group-size", str(N)),
            *("--train-data-path", data, "--pretrained-checkpoint", sft_run),
            *("--reward-function", f"{tmp_path}/mine.py:odd", f"{tmp_path}/mine.py:whole"),
            *("--reward-kwargs", json.dumps({"seconds": 1000}), "--reward-timeout", "2"),
            *("--rewards", "format=0.1", "judge", "--judge-url", endpoint.url),
            *("--judge-model", "m", "--save", tmp_path / "run"),
        ).succeeded()
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 2
    assert curve(steps, "rewards_failed") == [len(FAILING) * N] * 2
    assert curve(steps, "rewards_timed_out") == [N] * 2
    assert curve(steps, "reward/odd/half") == [0.5] * 2
    assert curve(steps, "reward/judge") == [0.5] * 2
    assert all(failures > 0 for failures in curve(steps, "judge/failures"))
    assert all(reward >= 0.5 for reward in curve(steps, "reward/mean"))
    assert all(norm > 0 for norm in curve(steps, "grad-norm")), "the fine ones are trained on"
    lines = [line for line in outcome.output.splitlines() if "no reward " in line]
    assert len(lines) == len(FAILING) * N * 2
    place = f"no reward {tmp_path}/mine.py:odd for response "
    for said in ("raised ValueError('this row is bad')", "ended its process (exit status 7)"):
        assert sum(place in line and line.endswith(said) for line in lines) == 2 * N


def test_the_example_of_the_documentation(arena: Arena, sft_run: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    code, command = re.findall(
        r"## Your own\n\n```python\n(.*?)```\n\n```bash\n(.*?)```", text, re.S
    )[0]
    assert code.count("\n") <= 5
    (tmp_path / "mine.py").write_text(code)
    dots, *flags = shlex.split(command)
    arena.launch(
        *("train_rl", *FROZEN, *CP2, "--train-iters", "1", "--lr", "1e-3"),
        *("--grpo-prompts-per-step", "2", "--grpo-group-size", "2"),
        *("--train-data-path", arena.data("train"), "--pretrained-checkpoint", sft_run),
        *(flag.replace("mine.py", f"{tmp_path}/mine.py") for flag in flags),
        *("--save", tmp_path / "run"),
    ).succeeded()
    (step,) = metrics_of(tmp_path / "run")
    assert dots == "..." and step["rewards_failed"] == 0
    # An answer of the arena has a few words.
    assert 0 < step["reward/brevity/words"] < 80 and step["reward/brevity"] == 1
    expected = step["reward/accuracy"] + 0.2 * step["reward/brevity"]
    assert step["reward/mean"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.full(
    "tests/distributed/test_rewards.py::test_a_function_that_the_first_rank_cannot_load"
)
def test_a_function_that_is_not_there(arena: Arena, sft_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    outcome = arena.launch(
        *("train_rl", *FROZEN, *CP2, "--train-iters", "1", "--lr", "1e-3"),
        *("--grpo-prompts-per-step", "2", "--grpo-group-size", "2"),
        *("--train-data-path", arena.data("train"), "--pretrained-checkpoint", sft_run),
        *("--reward-function", f"{tmp_path}/mine.py:even", "--save", tmp_path / "run"),
    )
    assert outcome.status != 0
    assert len(outcome.errors) == 1
    assert "mine.py has no function 'even'; check --reward-function" in outcome.errors[0]
