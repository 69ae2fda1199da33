"""The micro-batches of an update: rows of sampled steps, or of samples that are noised again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.algorithms.flow.nft import goodness, noised
from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.rl.flow.sampling import Samples
from megatron_longrl.rl.flow.settings import FlowSettings
from megatron_longrl.training.flow.losses import ContrastLoss, StepLoss
from megatron_longrl.training.flow.rows import ContrastRows, NoisyRows, StepRows
from megatron_longrl.training.flow.velocity_step import VelocityStep

if TYPE_CHECKING:
    from megatron_longrl.config.algorithm import AlgorithmSection


def loss_of(settings: FlowSettings, algorithm: AlgorithmSection) -> StepLoss | ContrastLoss:
    """The loss that the configuration describes."""
    if settings.preset.contrast:
        return ContrastLoss(settings.section.nft_beta, algorithm.grpo_kl_beta)
    return StepLoss(
        sampler=settings.sampler,
        noise_level=settings.noise_level,
        reduction=settings.reduction,
        clip_lower=algorithm.grpo_clamp_eps_lower,
        clip_upper=algorithm.grpo_clamp_eps_upper,
        beta=algorithm.grpo_kl_beta,
        guard=settings.preset.guard,
    )


def step_batches(
    samples: Samples, advantages: Tensor, settings: FlowSettings, seed: int, iteration: int
) -> list[StepRows]:
    """A micro-batch for each trained step of the samples of a micro-batch.

    Rows are batched as they were sampled, so that the ratio is 1 before the first update.
    """
    count = len(samples.steps)
    trained = max(1, math.ceil(settings.trained_fraction * count))
    chosen = []
    for one in samples.wanted:
        generator = noise_generator("trained", seed, iteration, one.prompt, one.index)
        chosen.append(sorted(torch.randperm(count, generator=generator)[:trained].tolist()))
    return [samples.rows(column, advantages) for column in zip(*chosen, strict=True)]


@torch.no_grad()
def contrast_batches(
    samples: Samples,
    advantages: Tensor,
    settings: FlowSettings,
    velocity_step: VelocityStep,
    seed: int,
    iteration: int,
) -> list[ContrastRows]:
    """Micro-batches of the samples at random noise levels, with the present weights' velocities."""
    generators = [
        noise_generator("levels", seed, iteration, one.prompt, one.index) for one in samples.wanted
    ]
    clean, batches = samples.latents, []
    for _ in range(settings.section.nft_noise_levels):
        levels = torch.cat([torch.rand(1, generator=g) for g in generators]).to(clean.device)
        noise = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators])
        rows = NoisyRows(clean, levels, tuple(one.text for one in samples.wanted))
        rows = replace(rows, latents=noised(clean, noise.to(clean.device), rows.levels(levels)))
        batches.append(
            ContrastRows(
                rows.latents,
                rows.sigmas,
                rows.prompts,
                clean=clean,
                good=goodness(advantages, settings.section.advantage_limit),
                old_velocities=velocity_step.velocities(rows),
            )
        )
    return batches


@torch.no_grad()
def with_reference(
    batches: Sequence[StepRows] | Sequence[ContrastRows],
    velocity_step: VelocityStep,
    in_place: AbstractContextManager[None],
) -> list[StepRows | ContrastRows]:
    """The micro-batches with the velocities of the reference, whose weights replace the policy's
    within the block."""
    with in_place:
        return [
            replace(batch, reference_velocities=velocity_step.velocities(batch))
            for batch in batches
        ]
