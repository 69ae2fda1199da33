"""Rewards that a plugin registers: scored in a worker, which imports the plugin, too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_longrl import plugins
from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.errors import UserError
from megatron_longrl.plugins import import_plugins
from megatron_longrl.rewards.registry import REWARDS, Reward, register_reward
from megatron_longrl.rewards.result import RewardResult
from megatron_longrl.rewards.scorer import Scorer
from tests.unit.rewards.samples import make_sample

PLUGIN = """
import os
from megatron_longrl.rewards.registry import Reward, register_reward

def length(sample):
    return float("nan") if sample.response == "nan" else float(len(sample.response))

register_reward("length", Reward(length))
register_reward("process", Reward(lambda sample: float(os.getpid()), in_worker=False))
"""


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    """One that knows the plugin's rewards."""
    monkeypatch.setattr(plugins, "_imported", [])
    monkeypatch.setattr(REWARDS, "_registered", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "longrl_rewards", raising=False)
    Path("longrl_rewards.py").write_text(PLUGIN)
    import_plugins(["longrl_rewards"])
    return Scorer(RewardSection(rewards=["length", "process=0"]))


def test_a_registered_reward_scores(scorer: Scorer) -> None:
    try:
        (result,) = scorer.result(scorer.score("length", make_sample("four")))
        assert result.score == 4.0
        (failed,) = scorer.result(scorer.score("length", make_sample("nan")))
        assert failed.error == "gave nan, which is not finite"
        quick = scorer.score("process", make_sample())
        assert isinstance(quick, RewardResult) and quick.score is not None
    finally:
        scorer.close()


@pytest.mark.parametrize("name", ["accuracy", "judge", "mean", "exact"])
def test_names_of_the_package_are_taken(name: str) -> None:
    with pytest.raises(UserError, match=f"reward '{name}'.*give yours another"):
        register_reward(name, Reward(lambda sample: 0.0))
