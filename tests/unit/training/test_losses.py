"""Losses against scalar formulas in float64, over any split into micro-batches and MR-SP ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.training.batches import sft_batches
from megatron_longrl.training.losses import LossReport, MetricSums, rl_loss, sft_loss
from megatron_longrl.training.targets import PolicyMicroBatch
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import (
    alone,
    make_advantages,
    make_groups,
    make_prompt,
    make_rollout,
    mr_sp,
    policy_batches,
    values_by_token,
)

LENGTHS = [[3, 7], [1, 2], [5, 5], [8, 1]]


def policy(tokens: Tensor) -> Tensor:
    """Log-probabilities near those of the rollout, some of them beyond the clipping bounds."""
    return values_by_token(tokens, -3.0, 0.0)


def reference(tokens: Tensor) -> Tensor:
    return values_by_token(tokens + 500, -3.0, 0.0)


def entropies(tokens: Tensor) -> Tensor:
    return values_by_token(tokens + 900, 0.1, 2.0)


def batches_of(groups: list[RolloutGroup], config: Config, ranks: Any) -> list[PolicyMicroBatch]:
    ref = None
    if config.algorithm.grpo_kl_beta:
        ref = {r.key: reference(r.token_ids) for group in groups for r in group.rollouts}
    return policy_batches(groups, make_advantages(groups), config, ranks, ref=ref)


def run(
    batches: list[PolicyMicroBatch], config: Config, ranks: Any
) -> tuple[Tensor, int, list[LossReport], list[Tensor]]:
    """Loss and count over all micro-batches, their reports, and d loss / d log-probability."""
    total, count, reports, gradients = torch.zeros((), dtype=torch.double), 0, [], []
    for batch in batches:
        tokens = batch.labels[batch.selected]
        logprobs = policy(tokens).requires_grad_()
        loss, number, report = rl_loss(config.algorithm, config.rollout)(
            batch, logprobs, entropies(tokens)
        )
        (gradient,) = torch.autograd.grad(loss, logprobs)
        total, count = total + loss.detach(), count + int(number)
        reports.append(report)
        gradients.append(gradient)
    return total, count, reports, gradients


def expected_loss(groups: list[RolloutGroup], config: Config) -> float:
    """Response by response and token by token.

    With one update per batch of rollouts the ratio is one, so nothing is clipped.
    """
    by_response, advantages = [], make_advantages(groups)
    for group in groups:
        for response in group.rollouts:
            losses, advantage = [], float(advantages[response.key][0])
            for token in response.token_ids:
                loss = -advantage
                difference = float(reference(token)) - float(policy(token))
                loss += config.algorithm.grpo_kl_beta * (math.exp(difference) - difference - 1)
                loss -= config.algorithm.grpo_entropy_term_weight * float(entropies(token))
                losses.append(loss)
            by_response.append(losses)
    if config.algorithm.loss_aggregation == "seq-mean-token-mean":
        return sum(sum(losses) / len(losses) for losses in by_response) / len(by_response)
    return sum(map(sum, by_response)) / sum(map(len, by_response))


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize(("beta", "bonus"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize("shared_prompt", [True, False])
def test_rl_loss(aggregation, beta, bonus, shared_prompt):
    config = make_config(
        loss_aggregation=aggregation,
        grpo_kl_beta=beta,
        grpo_entropy_term_weight=bonus,
        shared_prompt=shared_prompt,
        micro_batch_size=2,
    )
    groups = make_groups(LENGTHS)
    total, count, _, _ = run(batches_of(groups, config, alone()), config, alone())
    assert count == (32 if aggregation == "token-mean" else 8)
    assert float(total) / count == pytest.approx(expected_loss(groups, config), rel=1e-6)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("cp", [1, 2])
def test_the_mean_is_over_the_step_not_over_micro_batches_or_ranks_defect_11(aggregation, size, cp):
    config = make_config(
        loss_aggregation=aggregation,
        grpo_kl_beta=0.1,
        micro_batch_size=size,
        context_parallel_size=cp,
    )
    groups = make_groups(LENGTHS)
    total, count = 0.0, 0
    for rank in range(cp):
        ranks = mr_sp(rank, cp)
        loss, number, _, _ = run(batches_of(groups, config, ranks), config, ranks)
        total, count = total + float(loss), count + number
    assert count == (32 if aggregation == "token-mean" else 8)
    assert total / count == pytest.approx(expected_loss(groups, config), rel=1e-6)


def test_gradient_of_a_token_is_its_advantage_and_kl_slope():
    config = make_config(grpo_kl_beta=0.3)
    groups = make_groups(LENGTHS)
    batches = batches_of(groups, config, alone())
    _, _, _, gradients = run(batches, config, alone())
    for batch, gradient in zip(batches, gradients, strict=True):
        tokens = batch.labels[batch.selected]
        slope = 1 - (reference(tokens) - policy(tokens)).exp()
        expected = -batch.targets.advantages[batch.selected].double() + 0.3 * slope
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def test_what_rl_reports():
    config = make_config()
    groups = make_groups(LENGTHS)
    _, _, reports, _ = run(batches_of(groups, config, alone()), config, alone())
    means = MetricSums.total(report.metrics for report in reports).means()
    pairs = [
        (float(policy(token)), float(logprob), float(entropies(token)))
        for group in groups
        for response in group.rollouts
        for token, logprob in zip(response.token_ids, response.logprobs, strict=True)
    ]
    assert means["entropy/mean"] == pytest.approx(sum(h for *_, h in pairs) / 32, rel=1e-6)
    assert means["ratio/mean"] == 1
    assert means["clip_fraction"] == 0
    # Without a reference: how far the policy is from the engine that sampled.
    k3 = [math.exp(engines - ours) - (engines - ours) - 1 for ours, engines, _ in pairs]
    assert means["kl/mean"] == pytest.approx(sum(k3) / 32, rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sft_loss_is_the_mean_over_all_response_tokens(size):
    prompts = [make_prompt(f"p{k}", 3 + k) for k in range(3)]
    responses = [make_rollout(n, seed=n).token_ids.tolist() for n in (2, 9, 5)]
    total, count, reports = 0.0, 0, []
    for batch in sft_batches(prompts, responses, make_config(micro_batch_size=size), alone()):
        tokens = batch.labels[batch.selected]
        loss, number, report = sft_loss(batch, policy(tokens), entropies(tokens))
        total, count = total + float(loss), count + int(number)
        reports.append(report)
    flat = [float(policy(torch.tensor(token))) for row in responses for token in row]
    assert count == len(flat) == 16
    assert total / count == pytest.approx(-sum(flat) / 16, rel=1e-6)
    means = MetricSums.total(report.metrics for report in reports).means()
    assert means["lm loss"] == pytest.approx(-sum(flat) / 16, rel=1e-6)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_padding_alone_counts_nothing_and_has_a_gradient(aggregation):
    config = make_config(loss_aggregation=aggregation)
    (batch,) = batches_of([], config, alone())
    logprobs = torch.zeros(0, requires_grad=True)
    loss, count, report = rl_loss(config.algorithm, config.rollout)(batch, logprobs, torch.zeros(0))
    assert (loss.item(), count.item()) == (0.0, 0)
    loss.backward()
    assert all(value == 0 for value in report.metrics.means().values())


def test_sums_over_reports():
    first, second, empty = MetricSums(), MetricSums(), MetricSums()
    first.add("loss", torch.tensor([1.0, 2.0, 6.0]))
    first.maximum("gap", torch.tensor([-3.0, -1.0]))
    second.add("loss", torch.tensor([11.0]))
    second.maximum("gap", torch.tensor([-2.0]))
    second.add("only here", torch.tensor([4.0, 5.0]))
    empty.add("loss", torch.zeros(0))
    empty.add("nowhere", torch.zeros(0))
    means = MetricSums.total([first, second, empty]).means()
    assert means == {"loss": 5.0, "only here": 4.5, "nowhere": 0.0, "gap": -1.0}
    assert first.sums["loss"] == (9.0, 3.0), "adding up leaves the reports alone"
    assert MetricSums.total([]).means() == {}
