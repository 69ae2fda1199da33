"""Sampling with the trainer's own weights.

Latents and log-densities are float32. Random numbers depend on the seed, the iteration, the prompt
and the number of the sample only, so that no layout and no micro-batch size changes a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.algorithms.flow.steps import STEP_RULES, NoiseLevels, ode_step
from megatron_longrl.rl.flow.settings import FlowSettings
from megatron_longrl.training.flow.rows import NoisyRows, StepRows, TextEmbedding
from megatron_longrl.training.flow.velocity_step import VelocityStep


@dataclass(frozen=True)
class Wanted:
    """A sample that is to be made."""

    prompt: int
    """The number of the prompt among those of the iteration, over all replicas."""
    index: int
    """The number of the sample among those of the prompt."""
    text: TextEmbedding


@dataclass(frozen=True)
class RecordedStep:
    """A stochastic step of the samples of a micro-batch."""

    start: float
    end: float
    before: Tensor
    """float32 [b, c, h, w]."""
    reached: Tensor
    """float32 [b, c, h, w]."""
    mean: Tensor
    """float32 [b, c, h, w]."""
    logprobs: Tensor
    """float32 [b]."""


@dataclass(frozen=True)
class Samples:
    """The samples of a micro-batch."""

    wanted: Sequence[Wanted]
    latents: Tensor
    """float32 [b, c, h, w]: clean."""
    second: float
    """The second noise level of the schedule."""
    steps: Sequence[RecordedStep] = ()

    def rows(self, chosen: Sequence[int], advantages: Tensor) -> StepRows:
        """A row for each sample, its step of the number in ``chosen``."""
        picked = [(self.steps[step], row) for row, step in enumerate(chosen)]
        device = self.latents.device
        return StepRows(
            latents=torch.stack([step.before[row] for step, row in picked]),
            sigmas=torch.tensor([step.start for step, _ in picked], device=device),
            prompts=tuple(one.text for one in self.wanted),
            ends=torch.tensor([step.end for step, _ in picked], device=device),
            second=self.second,
            reached=torch.stack([step.reached[row] for step, row in picked]),
            advantages=advantages,
            old_logprobs=torch.stack([step.logprobs[row] for step, row in picked]),
            old_means=torch.stack([step.mean[row] for step, row in picked]),
        )


class FlowSampler:
    """Makes samples of prompts.

    Args:
        shape: the shape of the latents of a sample: (c, h, w), or (c, f, h, w) for a film.
        seed: the seed of the run.
    """

    def __init__(
        self,
        velocity_step: VelocityStep,
        settings: FlowSettings,
        shape: tuple[int, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        self._velocity_step, self._settings = velocity_step, settings
        self._shape, self._seed, self._device = shape, seed, device

    @torch.no_grad()
    def sample(
        self, wanted: Sequence[Wanted], iteration: int, sigmas: Sequence[float], stochastic: range
    ) -> Samples:
        """Samples of one micro-batch; collective over the replica.

        Args:
            iteration: the iteration of the run; validation has its own number.
            sigmas: noise levels, see :meth:`FlowSettings.sigmas`.
            stochastic: the steps that are, and that are recorded.
        """
        shared = self._settings.shared_first_noise
        first = [
            noise_generator("first", self._seed, iteration, one.prompt, 0 if shared else one.index)
            for one in wanted
        ]
        later = [
            noise_generator("steps", self._seed, iteration, one.prompt, one.index) for one in wanted
        ]
        prompts = tuple(one.text for one in wanted)
        rule = STEP_RULES[self._settings.sampler]
        latents = self._noise(first)
        recorded = []
        for number, (start, end) in enumerate(pairwise(sigmas)):
            starts = torch.full((len(wanted),), start, device=self._device)
            rows = NoisyRows(latents, starts, prompts)
            ends = torch.full_like(rows.sigmas, end)
            levels = NoiseLevels(rows.levels(rows.sigmas), rows.levels(ends), sigmas[1])
            velocities = self._velocity_step.velocities(rows)
            if number not in stochastic:
                latents = ode_step(latents, velocities, levels)
                continue
            step = rule.distribution(latents, velocities, levels, self._settings.noise_level)
            reached = step.mean + step.deviation * self._noise(later)
            logprobs = rule.log_density(
                reached, step.mean, step.deviation, self._settings.reduction
            )
            recorded.append(RecordedStep(start, end, latents, reached, step.mean, logprobs))
            latents = reached
        return Samples(wanted, latents, sigmas[1], recorded)

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        drawn = [torch.randn(self._shape, generator=generator) for generator in generators]
        return torch.stack(drawn).to(self._device)
