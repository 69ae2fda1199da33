"""Losses of one micro-batch on one rank, as sums that Megatron normalises once over all ranks.

With ``calculate_per_token_loss`` the gradient is divided by the global count at the end of the
step, so that no split into ranks or micro-batches changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.correction import (
    icepop_weights,
    sequence_weights,
    token_weights,
)
from megatron_longrl.algorithms.kl import kl_estimate
from megatron_longrl.algorithms.policy_loss import TokenLossInputs
from megatron_longrl.config.algorithm_parts import POLICY_LOSSES
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.targets import PolicyMicroBatch, ValueMicroBatch
from megatron_longrl.training.token_values import response_sums

if TYPE_CHECKING:
    from megatron_longrl.config.algorithm import AlgorithmSection
    from megatron_longrl.config.presets import Aggregation
    from megatron_longrl.config.rollout import RolloutSection


@dataclass
class MetricSums:
    """Metrics as (sum, count) and as maxima, which add up over micro-batches and ranks."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    loss_is_finite: bool = True
    """Whether the loss that was differentiated is a finite number."""

    def add(self, name: str, values: Tensor) -> None:
        """Count every entry of ``values`` once."""
        self.sums[name] = (float(values.double().sum()), float(values.numel()))

    def maximum(self, name: str, values: Tensor) -> None:
        """Remember the largest entry."""
        self.maxima[name] = float(values.max()) if values.numel() else 0.0

    @staticmethod
    def total(reports: Iterable[MetricSums]) -> MetricSums:
        """All reports together."""
        result = MetricSums()
        for report in reports:
            for name, (value, count) in report.sums.items():
                old_value, old_count = result.sums.get(name, (0.0, 0.0))
                result.sums[name] = (old_value + value, old_count + count)
            for name, value in report.maxima.items():
                result.maxima[name] = max(result.maxima.get(name, value), value)
            result.loss_is_finite &= report.loss_is_finite
        return result

    def means(self) -> dict[str, float]:
        """Mean of every sum (0 when nothing was counted), and the maxima."""
        means = {
            name: value / count if count else 0.0 for name, (value, count) in self.sums.items()
        }
        return {**means, **self.maxima}


@dataclass(frozen=True)
class LossReport:
    """The results of a loss beside its value: metrics, and quantities of single tokens."""

    metrics: MetricSums
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    """Quantities [t] of the selected tokens of this shard, without a graph."""


Loss = Callable[..., tuple[Tensor, Tensor, LossReport]]
"""(micro-batch, the outputs of the forward step, each [t]) -> (sum, count, report).

A language model's head gives log-probabilities, entropies and, where asked for, divergences from
the reference; a critic's gives values."""

LOG_RATIO = "train_inference_log_ratio"
"""The policy's log-probability of a token less that of the engine that generated it."""


def sft_loss(
    batch: MicroBatch, logprobs: Tensor, entropy: Tensor
) -> tuple[Tensor, Tensor, LossReport]:
    """Negative log-likelihood of the response tokens."""
    metrics = MetricSums()
    metrics.add("lm loss", -logprobs.detach())
    # One of the ranks that share the micro-batch reports its responses.
    lengths = batch.response_lengths[batch.response_lengths > 0]
    lengths = lengths if batch.sequence_group.rank() == 0 else lengths[:0]
    metrics.add("response_length/mean", lengths)
    metrics.maximum("response_length/max", lengths)
    count = torch.tensor(logprobs.numel(), dtype=torch.int, device=logprobs.device)
    return -logprobs.sum(), count, LossReport(metrics)


def rl_loss(
    algorithm: AlgorithmSection, rollout: RolloutSection, beta: Callable[[], float] | None = None
) -> Loss:
    """The policy loss that the configuration describes.

    Args:
        beta: the present weight of the KL term; by default that of the configuration.
    """
    return PolicyLoss(algorithm, rollout.max_tokens, beta or (lambda: algorithm.grpo_kl_beta))


@dataclass(frozen=True)
class PolicyLoss:
    """Policy loss, KL term and entropy bonus of one micro-batch; see :data:`Loss`."""

    algorithm: AlgorithmSection
    max_tokens: int
    """The most tokens of a response, by which one of the aggregations divides."""
    beta: Callable[[], float]

    def __call__(
        self,
        batch: PolicyMicroBatch,
        logprobs: Tensor,
        entropy: Tensor,
        divergence: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, LossReport]:
        """See :data:`Loss`.

        Args:
            divergence: [t] from the reference over the whole vocabulary, where it is asked for.
        """
        algorithm, selected, targets = self.algorithm, batch.selected, batch.targets
        # One update per batch of rollouts: the update's own values are the old ones.
        old = logprobs.detach()
        if targets.old_logprobs is not None:
            old = targets.old_logprobs[selected]
        sampled = targets.rollout_logprobs[selected]
        # PPO's ratio is to the policy that sampled (https://arxiv.org/abs/1707.06347, equation 6),
        # older weights' where that is another than the one before the update.
        base = sampled if algorithm.rollout_correction == "ratio" else old
        metrics = MetricSums()
        per_token = self._policy(batch, logprobs, base, targets.advantages[selected], metrics)
        metrics.add("entropy/mean", entropy.detach())
        log_ratio = old - sampled
        weights = self._correction(batch, log_ratio)
        if weights is not None:
            per_token = weights * per_token
            metrics.add("rollout_corr/rollout_is_mean", weights)
            metrics.add("rollout_corr/rollout_is_square", weights.square())
        metrics.add("policy loss", per_token.detach())
        per_token = per_token + self._kl(batch, logprobs, divergence, metrics)
        if algorithm.grpo_entropy_term_weight:
            per_token = per_token - algorithm.grpo_entropy_term_weight * entropy
        total, count = _aggregate(per_token, batch, algorithm.loss_aggregation, self.max_tokens)
        metrics.sums["lm loss"] = (float(total.detach()), float(count))
        report = LossReport(metrics, {LOG_RATIO: log_ratio.float()})
        return total, torch.tensor(count, dtype=torch.int, device=logprobs.device), report

    def _policy(
        self,
        batch: MicroBatch,
        logprobs: Tensor,
        old: Tensor,
        advantages: Tensor,
        metrics: MetricSums,
    ) -> Tensor:
        """[t]: the loss that --policy-loss names."""
        algorithm = self.algorithm
        inputs = TokenLossInputs(
            logprobs=logprobs,
            old_logprobs=old,
            advantages=advantages,
            clip_lower=algorithm.grpo_clamp_eps_lower,
            clip_upper=algorithm.grpo_clamp_eps_upper,
            dual_clip=algorithm.dual_clip or None,
            response_means=partial(_response_means, batch),
        )
        output = POLICY_LOSSES.find(algorithm.policy_loss).load()(inputs)
        metrics.add("ratio/mean", output.ratio.detach())
        metrics.add("clip_fraction", output.clipped)
        return output.loss

    def _correction(self, batch: MicroBatch, log_ratio: Tensor) -> Tensor | None:
        """[t]: what --rollout-correction weighs each token by."""
        algorithm = self.algorithm
        cap = algorithm.rollout_is_threshold
        if algorithm.rollout_correction == "token":
            return token_weights(log_ratio, cap)
        if algorithm.rollout_correction == "sequence":
            return sequence_weights(response_sums(batch, log_ratio), cap)
        if algorithm.rollout_correction == "icepop":
            return icepop_weights(log_ratio, algorithm.rollout_is_threshold_lower, cap)
        return None

    def _kl(
        self,
        batch: PolicyMicroBatch,
        logprobs: Tensor,
        divergence: Tensor | None,
        metrics: MetricSums,
    ) -> Tensor | float:
        """Return the term that the KL divergence adds to the loss."""
        algorithm, selected, targets = self.algorithm, batch.selected, batch.targets
        kind = "k3" if algorithm.kl_type == "full" else algorithm.kl_type
        if divergence is None and targets.ref_logprobs is not None:
            divergence = kl_estimate(logprobs, targets.ref_logprobs[selected], kind)
        if divergence is None:
            # No reference: report how far the policy is from the engine that sampled.
            distance = kl_estimate(logprobs.detach(), targets.rollout_logprobs[selected], kind)
            metrics.add("kl/mean", distance)
            return 0.0
        metrics.add("kl/mean", divergence.detach())
        return self.beta() * divergence if algorithm.kl_placement == "loss" else 0.0


def critic_loss(algorithm: AlgorithmSection) -> Loss:
    """Squared error of the values, none of which may move too far: PPO's clipped value loss."""

    def loss(batch: ValueMicroBatch, values: Tensor) -> tuple[Tensor, Tensor, LossReport]:
        selected, targets = batch.selected, batch.targets
        returns, old = targets.returns[selected], targets.old_values[selected]
        error = (values - returns).square()
        if algorithm.critic_value_clip is not None:
            near = old + (values - old).clamp(
                -algorithm.critic_value_clip, algorithm.critic_value_clip
            )
            error = torch.maximum(error, (near - returns).square())
        metrics = MetricSums()
        metrics.add("critic/loss", error.detach() / 2)
        metrics.add("critic/value", values.detach())
        for name, numbers in (("return", returns), ("error", returns - old)):
            metrics.add(f"critic/{name}", numbers)
            metrics.add(f"critic/{name}_square", numbers.square())
        total, count = _aggregate(error / 2, batch, "token-mean")
        counted = torch.tensor(count, dtype=torch.int, device=values.device)
        return total, counted, LossReport(metrics)

    return loss


def _response_means(batch: MicroBatch, values: Tensor) -> Tensor:
    """Return, at every selected token, the mean of ``values`` [t] over its whole response."""
    lengths = batch.response_lengths[batch.response_index[batch.selected]]
    return response_sums(batch, values) / lengths


def _aggregate(
    per_token: Tensor, batch: MicroBatch, kind: Aggregation, most_tokens: int = 1
) -> tuple[Tensor, int]:
    """Return this rank's part of the loss's sum, and of its divisor over all ranks.

    Args:
        kind: see --loss-aggregation.
        most_tokens: the number by which seq-mean-token-sum-norm divides the sum of a response.
    """
    if kind == "token-mean":
        return per_token.sum(), per_token.numel()
    # One of the ranks that share the micro-batch counts its responses.
    counts = batch.sequence_group.rank() == 0
    count = int((batch.response_lengths > 0).sum()) if counts else 0
    if kind == "seq-mean-token-mean":
        per_token = per_token / batch.response_lengths[batch.response_index[batch.selected]]
    elif kind == "seq-mean-token-sum-norm":
        per_token = per_token / most_tokens
    else:
        raise ValueError(f"{kind} is no aggregation of a loss")
    return per_token.sum(), count
