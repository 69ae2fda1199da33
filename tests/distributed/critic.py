"""The critic in any layout: values, advantages, losses and gradients, against formulas in float64
on the twin, which sees whole sequences on one process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrl.data.rows import load_rows
from megatron_longrl.rl.mini_batches import MiniBatch, with_targets
from megatron_longrl.rl.trainer import RLTrainer
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.critic import Critic
from megatron_longrl.training.losses import rl_loss
from megatron_longrl.training.runtime import Runtime, build_runtime
from megatron_longrl.training.targets import ValueMicroBatch, ValueTargets
from megatron_longrl.training.token_values import gather_by_rollout, scatter_to_shards
from tests.distributed.layouts import RESPONSES, TOLERANCE, gradients_of, tiny_config
from tests.distributed.policy_losses import (
    clear_gradients,
    difference,
    named_weights,
    off_policy_groups,
    prepared,
    rewards_of,
)
from tests.distributed.twin import Twin
from tests.scripted_engine import ScriptedEngine
from tests.unit.training.made_up import make_rewarded

GAMMA, LAMBDA, CLIP = 0.9, 0.8, 0.2
REWARDS = (1.0, 0.0)
"""Of the two responses to every row."""
HEAD = 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(77))
"""Weights of the value head."""


@dataclass(frozen=True)
class Targets:
    """Made up for one response, float32 [R], so far from the values that the clip works."""

    old_values: Tensor
    returns: Tensor

    @staticmethod
    @cache
    def of(row: int, index: int) -> Targets:
        """The same on every rank."""
        generator = torch.Generator().manual_seed(500 + 10 * row + index)
        shape = (2, RESPONSES[row][index])
        return Targets(*(0.5 + 0.5 * torch.randn(shape, generator=generator)))


@dataclass
class Expected:
    """The twin's view of all responses of all replicas, one after the other, float64 [tokens]."""

    policy: Twin
    critic: Twin
    head: Tensor
    """[h]"""
    values: Tensor
    """With a graph, as ``logprobs``."""
    logprobs: Tensor
    advantages: Tensor
    """Before they are normalised."""

    @staticmethod
    def of(runtime: Runtime) -> Expected:
        config = runtime.config
        policy, critic = (Twin(config, named_weights(runtime)) for _ in range(2))
        head = HEAD.clone().requires_grad_()
        groups, _ = off_policy_groups(runtime.build_prompts(load_rows(config.data.train_data_path)))
        advantages, values, logprobs = [], [], []
        for group in groups:
            for response, reward in zip(group.rollouts, REWARDS, strict=True):
                ids = response.token_ids.tolist()
                values.append(critic.values(group.prompt, ids, head).double())
                logprobs.append(policy.logprobs(group.prompt, ids).double())
                advantages.append(_gae(values[-1].tolist(), reward))
        flat = torch.tensor(list(chain(*advantages)), dtype=torch.float64)
        return Expected(policy, critic, head, torch.cat(values), torch.cat(logprobs), flat)

    def critic_gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """By the names of an export, and the head's."""
        clear_gradients(self.critic)
        self.head.grad = None
        loss.backward(retain_graph=True)
        found = self.critic.gradients()
        gradients = {name: g for name, g in found.items() if name.startswith("llm/")}
        assert self.head.grad is not None
        return gradients | {"value_head": self.head.grad}


def check_critic(folder: Path, **layout: object) -> None:
    """Values, advantages, and the losses and gradients of policy and critic in one layout."""
    options: dict[str, object] = {"gae_gamma": GAMMA, "gae_lambda": LAMBDA}
    options |= {"critic_value_clip": CLIP, "critic_lr": 0.0}
    runtime = build_runtime(tiny_config(folder, rl_algorithm="ppo", **options, **layout), "rl")
    config, critic = runtime.config, Critic(runtime)
    critic.begin(runtime.model.policy.module)
    _put_head(runtime, critic.model.policy.module)
    generated, media, _ = prepared(runtime)
    groups = [make_rewarded(group, REWARDS) for group in generated]
    engine = ScriptedEngine(lambda *_: True)
    trainer = RLTrainer(runtime, engine, rewards_of(runtime), None, critic)
    batches = rl_batches(groups, config, runtime.groups)
    results = trainer._forward_results(batches, media)
    advantages, learned = trainer._advantages(groups, batches, results)
    (part,) = with_targets([MiniBatch(groups, batches)], results, advantages, learned)
    expected = Expected.of(runtime)

    assert results.values is not None
    values = gather_by_rollout(batches, results.values, groups, runtime.groups)
    theirs = dict(zip(_all_responses(), expected.values.split(_lengths()), strict=True))
    for group in groups:
        for index, response in enumerate(group.rollouts):
            _close(values[response.key], theirs[int(group.prompt.row.problem_id), index])

    raw = expected.advantages
    whitened = (raw - raw.mean()) / (raw.std() + config.algorithm.advantage_epsilon)
    # On policy nothing is clipped: the gradient is that of the log-likelihood.
    (-whitened * expected.logprobs).mean().backward()
    result = runtime.train_step.train(
        part.policy, media.embeddings, media.encoded, rl_loss(config.algorithm, config.rollout)
    )
    ours = gradients_of(runtime, runtime.model.modules)
    # The loss's value is that of a ratio of 1: it is whitened, and nearly 0.
    assert result.metrics["lm loss"] == pytest.approx(0.0, abs=TOLERANCE)
    loss = torch.tensor(result.metrics["lm loss"])
    assert not difference(float(loss), loss, ours, expected.policy.gradients())

    returns = raw + expected.values.detach()
    loss = (expected.values - returns).square().mean() / 2
    metrics = critic.train(part.value, media.embeddings).metrics
    ours = _critic_gradients(runtime, critic.model.policy.module)
    assert not difference(metrics["critic/loss"], loss, ours, expected.critic_gradients(loss))
    _explained(metrics, returns, expected.values.detach())

    made_up = {
        rollout.key: Targets.of(int(group.prompt.row.problem_id), rollout.index)
        for group in groups
        for rollout in group.rollouts
    }
    own_returns = {key: targets.returns for key, targets in made_up.items()}
    own_values = {key: targets.old_values for key, targets in made_up.items()}
    value_batches = [
        ValueMicroBatch.of(
            batch,
            ValueTargets(
                scatter_to_shards(batch, own_returns), scatter_to_shards(batch, own_values)
            ),
        )
        for batch in batches
    ]
    everyone = [Targets.of(*place_) for place_ in _all_responses()]
    old = torch.cat([targets.old_values for targets in everyone]).double()
    returns = torch.cat([targets.returns for targets in everyone]).double()
    near = old + (expected.values - old).clamp(-CLIP, CLIP)
    errors = torch.stack([(expected.values - returns).square(), (near - returns).square()])
    assert 0.1 < (errors[1] > errors[0]).double().mean() < 0.9
    loss = errors.amax(0).mean() / 2
    metrics = critic.train(value_batches, media.embeddings).metrics
    ours = _critic_gradients(runtime, critic.model.policy.module)
    assert not difference(metrics["critic/loss"], loss, ours, expected.critic_gradients(loss))
    _explained(metrics, returns, old)


def _gae(values: list[float], reward: float) -> list[float]:
    """https://arxiv.org/abs/1506.02438, equations 11 to 16; the reward falls on the last token."""
    length = len(values)
    rewards = [0.0] * (length - 1) + [reward]
    after = [*values[1:], 0.0]
    errors = [rewards[t] + GAMMA * after[t] - values[t] for t in range(length)]
    return [
        sum((GAMMA * LAMBDA) ** k * errors[t + k] for k in range(length - t)) for t in range(length)
    ]


def _explained(metrics: dict[str, float], returns: Tensor, values: Tensor) -> None:
    share = 1 - (returns - values).var() / returns.var()
    assert metrics["critic/explained_variance"] == pytest.approx(float(share), rel=1e-4, abs=1e-5)


def _close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=TOLERANCE, atol=TOLERANCE)


def _all_responses() -> list[tuple[int, int]]:
    return [(row, k) for row, lengths in enumerate(RESPONSES) for k in range(len(lengths))]


def _lengths() -> list[int]:
    return [RESPONSES[row][k] for row, k in _all_responses()]


def _put_head(runtime: Runtime, gpt: Any) -> None:
    """This rank's part of ``HEAD``."""
    if runtime.groups.is_last_stage:
        tp = runtime.groups.tp
        with torch.no_grad():
            gpt.value_head.weight.copy_(HEAD.chunk(tp.size())[tp.rank()][None])


def _critic_gradients(runtime: Runtime, gpt: Any) -> dict[str, Tensor]:
    """By the names of an export, and the head's [h]; on every rank."""
    gradients = gradients_of(runtime, {"language_model": gpt}, parts=("llm",))
    groups = runtime.groups
    mine = torch.zeros(groups.tp.size(), len(HEAD) // groups.tp.size())
    if groups.is_last_stage:
        mine[groups.tp.rank()] = gpt.value_head.weight.main_grad[0]
    torch.distributed.all_reduce(mine, group=groups.tp)
    torch.distributed.all_reduce(mine, group=groups.pp)
    return gradients | {"value_head": mine.flatten()}
