"""Losses of one micro-batch on one rank, as sums that Megatron normalises once over all ranks.

With ``calculate_per_token_loss`` the gradient is divided by the global count at the end of the
step, so that no split into ranks or micro-batches changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.kl import kl_estimate
from megatron_longrl.algorithms.policy_loss import clipped
from megatron_longrl.training.sharding import MicroBatch

if TYPE_CHECKING:
    from megatron_longrl.config import Config


@dataclass
class Sums:
    """Metrics as (sum, count) and as maxima, which add up over micro-batches and ranks."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Count every entry of ``values`` once."""
        self.sums[name] = (float(values.double().sum()), float(values.numel()))

    def maximum(self, name: str, values: Tensor) -> None:
        """Remember the largest entry."""
        self.maxima[name] = float(values.max()) if values.numel() else 0.0

    @staticmethod
    def total(reports: Iterable[Sums]) -> Sums:
        """All reports together."""
        result = Sums()
        for report in reports:
            for name, (value, count) in report.sums.items():
                old_value, old_count = result.sums.get(name, (0.0, 0.0))
                result.sums[name] = (old_value + value, old_count + count)
            for name, value in report.maxima.items():
                result.maxima[name] = max(result.maxima.get(name, value), value)
        return result

    def means(self) -> dict[str, float]:
        """Mean of every sum (0 when nothing was counted), and the maxima."""
        means = {
            name: value / count if count else 0.0 for name, (value, count) in self.sums.items()
        }
        return {**means, **self.maxima}


Loss = Callable[[MicroBatch, Tensor, Tensor], tuple[Tensor, Tensor, Sums]]
"""(micro-batch, log-probabilities [t], entropies [t]) -> (sum, count, report)."""


def sft_loss(batch: MicroBatch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor, Sums]:
    """Negative log-likelihood of the response tokens."""
    report = Sums()
    report.add("lm loss", -logprobs.detach())
    count = torch.tensor(logprobs.numel(), dtype=torch.int, device=logprobs.device)
    return -logprobs.sum(), count, report


def rl_loss(config: Config) -> Loss:
    """The policy loss that the configuration describes."""
    return partial(_policy_loss, config)


def _policy_loss(
    config: Config,
    batch: MicroBatch,
    logprobs: Tensor,
    entropy: Tensor,
) -> tuple[Tensor, Tensor, Sums]:
    """Clipped policy loss, KL term and entropy bonus."""
    selected = batch.selected
    assert batch.advantages is not None and batch.rollout_logprobs is not None
    # One update per batch of rollouts: the update's own values are the old ones.
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[selected]
    per_token, ratio, was_clipped = clipped(
        logprobs,
        old,
        batch.advantages[selected],
        config.grpo_clamp_eps_lower,
        config.grpo_clamp_eps_upper,
        config.dual_clip,
    )
    report = Sums()
    report.add("policy loss", per_token.detach())
    report.add("entropy/mean", entropy.detach())
    report.add("ratio/mean", ratio.detach())
    report.add("clip_fraction", was_clipped)
    gap = (logprobs.detach() - batch.rollout_logprobs[selected]).abs()
    report.add("logprob_gap/mean", gap)
    report.maximum("logprob_gap/max", gap)
    if batch.ref_logprobs is not None:
        divergence = kl_estimate(logprobs, batch.ref_logprobs[selected], config.kl_type)
        per_token = per_token + config.grpo_kl_beta * divergence
    else:  # no reference: report how far the policy is from the engine that sampled
        divergence = kl_estimate(
            logprobs.detach(), batch.rollout_logprobs[selected], config.kl_type
        )
    report.add("kl/mean", divergence.detach())
    if config.grpo_entropy_term_weight:
        per_token = per_token - config.grpo_entropy_term_weight * entropy
    report.add("lm loss", per_token.detach())
    if config.loss_aggregation == "token":
        count = per_token.numel()
    else:
        per_token = per_token / batch.response_lengths[batch.response_index[selected]]
        # One of the ranks that share the micro-batch counts its responses.
        counts = batch.sequence_group.rank() == 0
        count = int((batch.response_lengths > 0).sum()) if counts else 0
    return (
        per_token.sum(),
        torch.tensor(count, dtype=torch.int, device=logprobs.device),
        report,
    )
