"""One replica meets a number that is not finite: no rank changes a weight, three times end the run
on all ranks."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import Rollout
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rl.trainer import RLTrainer
from megatron_longrl.training import sft
from megatron_longrl.training.critic import CRITIC, Critic
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.losses import sft_loss
from megatron_longrl.training.runtime import Runtime, build_runtime
from megatron_longrl.training.sft import SFTTrainer
from tests.distributed.cases import CP2
from tests.distributed.dynamic_sampling import same, source_of, weights
from tests.distributed.layouts import tiny_config
from tests.runner.tiers import full_only
from tests.scripted_engine import ScriptedEngine, number_of, questions

BAD = 3
"""The question whose log-probabilities no engine should give; the second replica's in DP2."""


class BrokenEngine(ScriptedEngine):
    """Its log-probabilities of one question's responses are not finite while it is broken."""

    broken = True

    def _rollout(self, request, index):
        rollout: Rollout = super()._rollout(request, index)
        if self.broken and number_of(request.prompt.row) % 4 == BAD:
            rollout.logprobs[-1] = math.nan
        return rollout


def trainer_of(runtime: Runtime) -> tuple[RLTrainer, BrokenEngine]:
    engine = BrokenEngine(lambda number, j, step: j == 0)
    critic = None
    if runtime.config.algorithm.advantage == "gae":
        critic = Critic(runtime)
        critic.begin(runtime.model.policy.module)
    rewards = build_rewards(runtime.config.reward, runtime.groups)
    return RLTrainer(runtime, engine, rewards, None, critic), engine


@pytest.mark.parametrize(
    ("algorithm", "layout"),
    full_only(
        "tests/distributed/test_non_finite.py::test_rl",
        [pytest.param("grpo", {}, id="DP2"), pytest.param("ppo", CP2, id="PPO, MR-SP2")],
        ["DP2"],
    ),
)
def test_rl(tiny_data, algorithm, layout):
    options = {"rl_algorithm": algorithm, "rollout_correction": "token", "train_iters": 9}
    runtime = build_runtime(tiny_config(tiny_data, lr=1e-3, **options, **layout), "rl")
    trainer, engine = trainer_of(runtime)
    source, before = source_of(questions(tiny_data, 8), runtime), weights(runtime)
    for step in range(2):
        metrics = trainer.step(step, source)
        assert metrics["skipped_updates"] == 1
        assert not math.isfinite(metrics["grad-norm"])
        assert same(weights(runtime), before)
    # A good step in between: they are counted anew.
    engine.broken = False
    metrics = trainer.step(2, source)
    assert metrics["skipped_updates"] == 0
    assert math.isfinite(metrics["grad-norm"])
    assert not same(weights(runtime), before)
    engine.broken = True
    for step in (3, 4):
        trainer.step(step, source)
    assert trainer.state()["skipped_updates"] == 2
    # What a resumed run counts on from.
    state = trainer.state()
    again = RLTrainer(runtime, engine, trainer.rewards, None, trainer.critic, state)
    with pytest.raises(UserError, match=r"nan in 3 updates in a row, up to step 6"):
        again.step(5, source)


def test_critic(tiny_data):
    """The critic of one replica alone is lost, while the policy waits for it."""
    options = {"rl_algorithm": "ppo", "critic_warmup_steps": 9, "train_iters": 9, "lr": 1e-3}
    options["critic_iterations"] = 3
    runtime = build_runtime(tiny_config(tiny_data, **options), "rl")
    trainer, engine = trainer_of(runtime)
    critic = trainer.critic
    assert critic is not None
    source = source_of(questions(tiny_data, 8), runtime)
    assert trainer.step(0, source)["critic/skipped"] == 0
    moments = critic.optimizers[CRITIC].optimizer.state.values()
    assert {int(state["step"]) for state in moments} == {3}
    if torch.distributed.get_rank() == 1:
        with torch.no_grad():
            critic.model.policy.module.decoder.final_layernorm.weight[0] = math.nan
    before = [p.detach().clone() for p in critic.model.policy.module.parameters()]
    for step in (1, 2):  # What is skipped is not tried again on the same rollouts.
        metrics = trainer.step(step, source)
        assert (metrics["critic/skipped"], metrics["skipped_updates"]) == (1, 0)
        for old, new in zip(before, critic.model.policy.module.parameters(), strict=True):
            torch.testing.assert_close(new.detach(), old, rtol=0, atol=0, equal_nan=True)
    state = trainer.state()
    assert (state["critic_skipped_updates"], state["skipped_updates"]) == (2, 0)
    again = RLTrainer(runtime, engine, trainer.rewards, None, critic, state)
    told = r"norm of the critic's gradient was nan in 3 updates in a row, up to step 4.*--critic-lr"
    with pytest.raises(UserError, match=told):
        again.step(3, source)


def test_sft(tiny_data):
    """Weights that one replica alone has lost."""
    runtime = build_runtime(tiny_config(tiny_data, lr=1e-3), "sft")
    if torch.distributed.get_rank() == 1:
        with torch.no_grad():
            runtime.model.policy.module.decoder.final_layernorm.weight[0] = math.nan
    trainer, before = SFTTrainer(runtime), weights(runtime)
    rows = questions(tiny_data, 4)
    source = DataIterator(RowSampler(rows, 0, shuffle=False), 0, len(rows), runtime.groups)
    for step in range(2):
        assert trainer.step(step, source)["skipped_updates"] == 1
        for old, new in zip(before, weights(runtime), strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(UserError, match=r"nan in 3 updates in a row, up to step 3"):
        trainer.step(2, source)


def test_a_loss_that_is_nan_though_its_gradient_is_finite(tiny_data, monkeypatch):
    """That of one rank alone."""
    is_lost = torch.distributed.get_rank() == 1

    def lost(batch, logprobs, entropy):
        total, count, report = sft_loss(batch, logprobs, entropy)
        return total + (math.nan if is_lost else 0.0), count, report

    runtime = build_runtime(tiny_config(tiny_data, lr=1e-3, train_iters=9), "sft")
    trainer, before = SFTTrainer(runtime), weights(runtime)
    rows = questions(tiny_data, 4)
    source = DataIterator(RowSampler(rows, 0, shuffle=False), 0, len(rows), runtime.groups)
    monkeypatch.setattr(sft, "sft_loss", lost)
    for step in range(2):
        metrics = trainer.step(step, source)
        assert metrics["skipped_updates"] == 1 and math.isfinite(metrics["grad-norm"])
        assert same(weights(runtime), before)
    with pytest.raises(UserError, match=r"the loss was not finite in 3 updates in a row, up to"):
        trainer.step(2, source)
    monkeypatch.setattr(sft, "sft_loss", sft_loss)
    assert trainer.step(3, source)["skipped_updates"] == 0
    assert not same(weights(runtime), before)
