"""Users' functions that return numbers of NumPy and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_longrl.rewards.functions import UserFunction
from megatron_longrl.rewards.result import RewardResult
from tests.unit.rewards.samples import write_file


@pytest.fixture
def single(tmp_path: Path) -> UserFunction:
    return UserFunction(write_file(tmp_path, "def f(response): pass"), "f", {})


@pytest.mark.parametrize(
    "value", [np.float32(1), np.array(1.0), torch.tensor(1.0), torch.tensor([1])]
)
def test_numbers(single: UserFunction, value: Any) -> None:
    assert single.outcomes(value, 1) == [RewardResult(1.0)]


def test_several_numbers_are_no_score(single: UserFunction) -> None:
    (outcome,) = single.outcomes(torch.ones(2), 1)
    assert outcome.score is None
    assert "returned tensor([1., 1.]), which is no finite number" in str(outcome.error)


def test_an_array_of_a_batch(tmp_path: Path) -> None:
    batch = UserFunction(write_file(tmp_path, "def f(responses): pass"), "f", {})
    assert batch.outcomes(np.array([0.0, 1.0]), 2) == [RewardResult(0.0), RewardResult(1.0)]
