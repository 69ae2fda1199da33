"""What a built-in reward raises costs its own sample."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.rewards import scorer
from megatron_longrl.rewards.result import RewardResult
from tests.unit.rewards.samples import make_sample


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the reward ``choice`` raises."""
    errors: list[BaseException] = []

    def fail(*_: object) -> float:
        raise errors[0]

    broken = replace(scorer.REWARDS.find("choice"), score=fail)
    monkeypatch.setitem(scorer.REWARDS._loaded, "choice", broken)
    return errors


def test_an_exception_is_the_samples(broken: list[BaseException]) -> None:
    broken.append(ValueError("too many digits"))
    outcome = scorer.Scorer(RewardSection()).score("accuracy", make_sample())
    assert isinstance(outcome, RewardResult) and outcome.score is None
    assert outcome.error is not None
    assert outcome.error.startswith("ValueError: too many digits (at rewards/test_scorer.py:")


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_no_memory_and_an_interrupt_end_the_run(
    broken: list[BaseException], error: BaseException
) -> None:
    broken.append(error)
    with pytest.raises(type(error)):
        scorer.Scorer(RewardSection()).score("accuracy", make_sample())
