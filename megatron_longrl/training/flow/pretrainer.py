"""Pre-training of a flow-matching model on captioned pictures or films: ``longrl train-sft``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.algorithms.flow.nft import noised
from megatron_longrl.algorithms.flow.schedules import shifted
from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.data.rows import Row
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.platforms import platform
from megatron_longrl.training.flow.average import average_of, with_average
from megatron_longrl.training.flow.inputs import FlowInputs, load_inputs
from megatron_longrl.training.flow.losses import LOSS, flow_matching_loss
from megatron_longrl.training.flow.pixels import pixels_of
from megatron_longrl.training.flow.rows import CleanRows, NoisyRows
from megatron_longrl.training.flow.velocity_step import VelocityStep
from megatron_longrl.training.loop import TrainingLoop, start
from megatron_longrl.training.run import Run, build_run
from megatron_longrl.training.train_step import SkippedUpdates, TrainStep

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.training.weight_average import WeightAverage

_VALIDATION = -1
"""The iteration by whose noise validation measures, always the same."""
_PICTURES_AT_ONCE = 8
"""Pictures that are encoded together."""


class FlowPretrainer:
    """The work of the steps of a run.

    Latents of pictures and embeddings of captions are computed once and kept.

    Args:
        average: the average of the trained weights, when there is one.
        state: the result of :meth:`state` when the run was saved.
    """

    is_ahead = False

    def __init__(
        self,
        run: Run,
        inputs: FlowInputs,
        average: WeightAverage | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        config = run.config
        self._run, self._inputs, self._average = run, inputs, average
        self._section = config.family_as(FlowSection)
        self._known: dict[str, Tensor] = {}
        step = VelocityStep(run.model.policy.module)
        self._train_step = TrainStep(run.model, None, run.groups, step)
        self.validates = bool(inputs.valid)
        self.samples_per_step = config.training.samples_per_step(run.groups.dp.size())
        self._skips = SkippedUpdates.restored(state)

    def step(self, iteration: int, goes_on: Callable[[int], bool]) -> dict[str, float]:
        """One optimizer step; returns its metrics over all replicas."""
        dp, timer = self._run.groups.dp, self._run.timer
        share = self.samples_per_step // dp.size()
        first = share * dp.rank()
        rows = self._inputs.rows.take(iteration * self.samples_per_step + first, share)
        with timer("encode"):
            batches = self._batches(rows, iteration, first, self._section.caption_dropout)
        with timer("update"):
            result = self._train_step.train(batches, {}, None, flow_matching_loss)
        self._skips.count(result, iteration)
        if self._average is not None:
            self._average.update(iteration)
        return result.as_metrics()

    def validate(self) -> dict[str, float]:
        """The loss of the validation rows at noise that is always the same."""
        dp = self._run.groups.dp
        # Every replica takes the rows that divide among all: the sums are collective.
        valid = self._inputs.valid
        share = len(valid) // dp.size()
        first = share * dp.rank()
        batches = self._batches(valid[first : first + share], _VALIDATION, first, 0.0)
        if not batches:
            return {}
        with with_average(self._average):
            sums = self._train_step.evaluate(batches, {}, flow_matching_loss)
        return {f"valid/{LOSS}": sums.means()[LOSS]}

    def state(self) -> dict[str, Any]:
        """The state, as JSON, that a resumed run needs beside the model."""
        return self._skips.state()

    def description(self) -> str:
        """A line for the run's banner."""
        section, training = self._section, self._run.config.training
        return f"{self.samples_per_step} {section.drawn} a step, {training.train_iters} steps"

    def _batches(
        self, rows: Sequence[Row], iteration: int, first: int, dropout: float
    ) -> list[CleanRows]:
        """Micro-batches of rows, each at a noise level that is drawn evenly from 0 to 1 and moved
        as those of sampling are: https://arxiv.org/abs/2403.03206, section 5.3.2."""
        with raise_on_all_ranks(self._run.groups.gloo_group):
            latents = self._latents_of(rows)
        texts, levels, noises = [], [], []
        for number, (row, clean) in enumerate(zip(rows, latents, strict=True), first):
            seed = self._run.config.training.seed
            generator = noise_generator("pretraining", seed, iteration, number, 0)
            dropped = float(torch.rand(1, generator=generator)) < dropout
            texts.append("" if dropped else row.problem)
            level = float(torch.rand(1, generator=generator))
            levels.append(shifted(level, self._section.schedule_shift))
            noises.append(torch.randn(clean.shape, generator=generator))
        embeddings = self._inputs.embeddings.of(texts)
        size = self._run.config.training.micro_batch_size
        batches = []
        for begin in range(0, len(rows), size):
            part = slice(begin, begin + size)
            clean = torch.stack(latents[part])
            noise = torch.stack(noises[part]).to(clean.device)
            sigmas = torch.tensor(levels[part], device=clean.device)
            plain = NoisyRows(clean, sigmas, tuple(embeddings[part]))
            noisy = noised(clean, noise, plain.levels(sigmas))
            batches.append(CleanRows(noisy, sigmas, plain.prompts, velocities=noise - clean))
        return batches

    def _latents_of(self, rows: Sequence[Row]) -> list[Tensor]:
        """The latents of rows; those of new ones are encoded, a few pictures or one film at a
        time."""
        section = self._section
        new = [row for row in {row.uid: row for row in rows}.values() if row.uid not in self._known]
        at_once = _PICTURES_AT_ONCE if section.frames is None else 1
        for first in range(0, len(new), at_once):
            part = new[first : first + at_once]
            pixels = torch.from_numpy(np.stack([pixels_of(row, section) for row in part]))
            latents = self._inputs.frozen.encode_pictures(pixels).to(platform.device)
            # Copies, which do not keep the others' memory.
            self._known |= {r.uid: one.clone() for r, one in zip(part, latents, strict=True)}
        return [self._known[row.uid] for row in rows]


def train(config: Config) -> None:
    """Run pre-training to the end."""
    run = build_run(config, "sft")
    inputs = load_inputs(run)
    average = average_of(run)
    loaded = start(run, average)
    TrainingLoop(run, loaded, average).run(FlowPretrainer(run, inputs, average, loaded.state))
