"""Losses of micro-batches of flow-matching models, as sums over rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrl.algorithms.flow.densities import Reduction, divergence, reduced
from megatron_longrl.algorithms.flow.guard import guarded_log_ratio, step_weight
from megatron_longrl.algorithms.flow.nft import nft_loss
from megatron_longrl.algorithms.flow.steps import STEP_RULES, NoiseLevels
from megatron_longrl.algorithms.policy_loss import clipped_surrogate, ratio_of
from megatron_longrl.training.flow.rows import CleanRows, ContrastRows, StepRows
from megatron_longrl.training.losses import LossReport, MetricSums

LossOutput = tuple[Tensor, Tensor, LossReport]
"""See :data:`~megatron_longrl.training.losses.Loss`."""

LOSS = "lm loss"
"""Every program reports what it minimizes under this name."""


def flow_matching_loss(batch: CleanRows, velocities: Tensor) -> LossOutput:
    """The squared error of the velocities, the mean over the elements of a row.

    https://arxiv.org/abs/2403.03206, equation 2.
    """
    error = velocities.view_as(batch.latents) - batch.velocities
    return _summed(reduced(error.square(), "mean"), MetricSums())


@dataclass(frozen=True)
class StepLoss:
    """The clipped surrogate of stochastic steps, and the divergence from the reference."""

    sampler: str
    """A name of :data:`~megatron_longrl.algorithms.flow.steps.STEP_RULES`."""
    noise_level: float
    reduction: Reduction
    clip_lower: float
    clip_upper: float
    beta: float
    """Weight of the divergence."""
    guard: bool
    """Ratios and weights of GRPO-Guard."""

    def __call__(self, batch: StepRows, velocities: Tensor) -> LossOutput:
        """A loss for every step."""
        rule = STEP_RULES[self.sampler]
        levels = NoiseLevels(batch.levels(batch.sigmas), batch.levels(batch.ends), batch.second)
        step = rule.distribution(
            batch.latents, velocities.view_as(batch.latents), levels, self.noise_level
        )
        logprobs = rule.log_density(batch.reached, step.mean, step.deviation, self.reduction)
        log_ratio = logprobs - batch.old_logprobs
        metrics = MetricSums()
        metrics.maximum("flow/log_ratio_max", log_ratio.detach().abs())
        if self.guard:
            log_ratio = guarded_log_ratio(
                log_ratio, step.mean, batch.old_means, step.deviation, self.reduction
            )
        ratio = ratio_of(log_ratio, torch.zeros_like(log_ratio))
        loss, clipped = clipped_surrogate(
            ratio, batch.advantages, self.clip_lower, self.clip_upper, None
        )
        if self.guard:
            loss = loss * step_weight(levels.change)
        if self.reduction == "sum":
            # A log-density grows with the elements of a sample, and its gradient, too.
            loss = loss / batch.latents[0].numel()
        metrics.add("ratio/mean", ratio.detach())
        metrics.add("clip_fraction", clipped)
        metrics.add("policy loss", loss.detach())
        if batch.reference_velocities is not None:
            reference = rule.distribution(
                batch.latents, batch.reference_velocities, levels, self.noise_level
            )
            apart = divergence(step.mean, reference.mean, step.deviation, "mean")
            metrics.add("kl/mean", apart.detach())
            loss = loss + self.beta * apart
        return _summed(loss, metrics)


@dataclass(frozen=True)
class ContrastLoss:
    """DiffusionNFT's loss, and the squared distance from the reference's velocities."""

    nft_beta: float
    beta: float
    """Weight of the distance."""

    def __call__(self, batch: ContrastRows, velocities: Tensor) -> LossOutput:
        """A loss for every row."""
        predicted = velocities.view_as(batch.latents)
        sigmas = batch.levels(batch.sigmas)
        loss = nft_loss(
            *(predicted, batch.old_velocities, batch.latents, batch.clean, sigmas),
            batch.good,
            self.nft_beta,
        )
        metrics = MetricSums()
        metrics.add("policy loss", loss.detach())
        if batch.reference_velocities is not None:
            apart = reduced((predicted - batch.reference_velocities).square(), "mean")
            metrics.add("kl/mean", apart.detach())
            loss = loss + self.beta * apart
        return _summed(loss, metrics)


def _summed(per_row: Tensor, metrics: MetricSums) -> LossOutput:
    metrics.add(LOSS, per_row.detach())
    count = torch.tensor(per_row.numel(), dtype=torch.int, device=per_row.device)
    return per_row.sum(), count, LossReport(metrics)
