"""The entry points as functions of Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.api import evaluate, to_arguments, train_sft
from megatron_longrl.errors import UserError


def test_keywords_are_flags() -> None:
    assert to_arguments(
        {
            "lr": 1e-6,
            "train_data_path": ["a", Path("b")],
            "bf16": True,
            "shared_prompt": False,
            "no_load_rng": False,
            "load": None,
            "reward_kwargs": {"k": 1},
        }
    ) == [
        *("--lr", "1e-06", "--train-data-path", "a", "b", "--bf16"),
        *("--no-shared-prompt", "--load-rng", "--reward-kwargs", '{"k": 1}'),
    ]


def test_an_error_of_the_run_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^--train-data-path is missing; no model: "):
        train_sft(lr=1e-5)
    assert "error: --train-data-path is missing" in capfd.readouterr().err
    with pytest.raises(UserError, match="no such file or folder"):
        evaluate(load=".", data="none.jsonl")
