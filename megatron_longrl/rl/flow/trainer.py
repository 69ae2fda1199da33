"""Reinforcement learning of a flow-matching model; one step is :meth:`FlowTrainer.step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.algorithms.advantages import AdvantageSettings
from megatron_longrl.algorithms.group_rewards import GroupRewards
from megatron_longrl.config.algorithm_parts import ADVANTAGES
from megatron_longrl.data.rows import Row
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.observability.contact_sheet import SheetRow, write_sheet
from megatron_longrl.observability.film_sheet import write_film_sheet
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.parallel.sums import sum_over_replicas
from megatron_longrl.planner.packing import even_part
from megatron_longrl.platforms import platform
from megatron_longrl.rl.flow.picture_rewards import PictureRewards
from megatron_longrl.rl.flow.pictures import decode_share
from megatron_longrl.rl.flow.sampling import FlowSampler, Samples, Wanted
from megatron_longrl.rl.flow.settings import FlowSettings
from megatron_longrl.rl.flow.updates import (
    contrast_batches,
    loss_of,
    step_batches,
    with_reference,
)
from megatron_longrl.rl.mean_metrics import mean_metrics
from megatron_longrl.rl.reference import ReferenceWeights
from megatron_longrl.training.flow.average import with_average
from megatron_longrl.training.flow.inputs import FlowInputs
from megatron_longrl.training.flow.rows import ContrastRows, StepRows
from megatron_longrl.training.flow.velocity_step import VelocityStep
from megatron_longrl.training.run import Run
from megatron_longrl.training.train_step import SkippedUpdates, StepResult, TrainStep
from megatron_longrl.training.weight_average import WeightAverage

_VALIDATION = -1
"""The iteration by whose random numbers validation samples, always the same."""
_SHEET_ROWS, _SHEET_COLUMNS = 12, 8


class FlowTrainer:
    """The work of the steps of a run.

    Args:
        reference: frozen weights of the KL term, when there is one. average: the average of the
        trained weights, when there is one.
        state: the result of :meth:`state` when the run was saved.
    """

    is_ahead = False

    def __init__(
        self,
        run: Run,
        inputs: FlowInputs,
        rewards: PictureRewards,
        reference: ReferenceWeights | None,
        average: WeightAverage | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        config = run.config
        self._run, self._inputs, self._rewards = run, inputs, rewards
        self._reference, self._average = reference, average
        self._section = config.family_as(FlowSection)
        self._settings = FlowSettings.of(self._section, config.algorithm)
        guidance = self._section.guidance_scale
        empty = inputs.embeddings.of([""])[0] if guidance != 1 else None
        self._velocity_step = VelocityStep(run.model.policy.module, guidance, empty)
        self._train_step = TrainStep(run.model, None, run.groups, self._velocity_step)
        self._loss = loss_of(self._settings, config.algorithm)
        seed = config.training.seed
        self._sampler = FlowSampler(
            *(self._velocity_step, self._settings, inputs.shape, seed, platform.device)
        )
        self.validates = bool(inputs.valid)
        self.samples_per_step = config.rl.responses_per_step
        self._skips = SkippedUpdates.restored(state)
        self._texts_told = 0
        self._validations = int((state or {}).get("validations", 0))

    # ---- A step ----

    def step(self, iteration: int, goes_on: Callable[[int], bool]) -> dict[str, float]:
        """One RL step; returns its metrics over all replicas."""
        config, timer = self._run.config, self._run.timer
        dp, size = self._run.groups.dp, config.rl.grpo_group_size
        prompts = config.rl.grpo_prompts_per_step
        # Dealt one by one, so that an update has the same prompts in every layout.
        numbers = range(dp.rank(), prompts, dp.size())
        every = self._inputs.rows.take(iteration * prompts, prompts)
        rows = [every[number] for number in numbers]
        with timer("encode"):
            wanted = self._wanted(numbers, rows, size)
        with timer("rollout"):
            sigmas = self._settings.sigmas(self._section.sampling_steps)
            stochastic = self._settings.stochastic_steps(iteration)
            samples = self._sample(wanted, iteration, sigmas, stochastic)
        rewards, _ = self._score([row for row in rows for _ in range(size)], samples)
        with timer("advantages"):
            advantages = self._advantages(rewards, size)
        metrics = self._update(iteration, samples, advantages)
        if self._average is not None:
            self._average.update(iteration)
        return {**metrics, **self._reward_metrics(rewards, size), **self._texts_encoded()}

    def _wanted(self, numbers: Sequence[int], rows: Sequence[Row], size: int) -> list[Wanted]:
        """``size`` samples for each row, which is the prompt of a number."""
        texts = self._inputs.embeddings.of([row.problem for row in rows])
        return [
            Wanted(number, index, text)
            for number, text in zip(numbers, texts, strict=True)
            for index in range(size)
        ]

    def _sample(
        self, wanted: Sequence[Wanted], iteration: int, sigmas: Sequence[float], stochastic: range
    ) -> list[Samples]:
        """Samples of this replica, in micro-batches."""
        size = self._run.config.training.micro_batch_size
        return [
            self._sampler.sample(wanted[start : start + size], iteration, sigmas, stochastic)
            for start in range(0, len(wanted), size)
        ]

    def _score(
        self, rows: Sequence[Row], samples: Sequence[Samples]
    ) -> tuple[list[float | None], dict[int, np.ndarray]]:
        """Rewards of all samples of this replica, and the pictures that this rank has decoded."""
        group, timer = self._run.groups.replica_gloo_group, self._run.timer
        with timer("decode"), raise_on_all_ranks(self._run.groups.gloo_group):
            latents = [part.latents for part in samples]
            pictures = decode_share(self._inputs.frozen, latents, group.rank(), group.size())
        with timer("reward"):
            return self._rewards.score(rows, pictures), pictures

    def _advantages(self, rewards: Sequence[float | None], size: int) -> Tensor:
        """float32 [samples of this replica]; 0 where there is no reward."""
        algorithm, groups = self._run.config.algorithm, self._run.groups
        outcomes = [
            GroupRewards.of(
                [reward or 0.0 for reward in rewards[start : start + size]],
                [1] * size,
                [reward is not None for reward in rewards[start : start + size]],
            )
            for start in range(0, len(rewards), size)
        ]
        settings = AdvantageSettings(
            epsilon=algorithm.advantage_epsilon,
            total=lambda numbers: sum_over_replicas(numbers, groups),
        )
        estimated = ADVANTAGES.find(algorithm.advantage).load()(outcomes, settings)
        flat = torch.cat([tokens for of_group in estimated for tokens in of_group])
        limit = self._section.advantage_limit
        return flat.clamp(-limit, limit).float().to(platform.device)

    # ---- Updates ----

    def _update(
        self, iteration: int, samples: Sequence[Samples], advantages: Tensor
    ) -> dict[str, float]:
        """All updates of the step; means of their metrics."""
        config, timer = self._run.config, self._run.timer
        with timer("pack"):
            batches = self._batches(iteration, samples, advantages)
        parts = config.mini_batches_per_step
        share = len(samples) // parts
        order = [*range(parts)] * config.rl.grpo_iterations
        results: list[StepResult] = []
        for number, part in enumerate(order):
            of_part = batches[part * share : (part + 1) * share]
            chosen = [batch for of_chunk in of_part for batch in of_chunk]
            with timer("update"):
                last = number == len(order) - 1
                result = self._train_step.train(chosen, {}, None, self._loss, scheduler_step=last)
            self._skips.count(result, iteration)
            results.append(result)
        return _metrics_of(results)

    def _batches(
        self, iteration: int, samples: Sequence[Samples], advantages: Tensor
    ) -> list[list[StepRows | ContrastRows]]:
        """The trained micro-batches of every micro-batch of samples."""
        seed, first = self._run.config.training.seed, 0
        found: list[list[StepRows | ContrastRows]] = []
        for part in samples:
            own = advantages[first : first + len(part.wanted)]
            first += len(part.wanted)
            rows: Sequence[StepRows] | Sequence[ContrastRows]
            if self._settings.preset.contrast:
                rows = contrast_batches(
                    part, own, self._settings, self._velocity_step, seed, iteration
                )
            else:
                rows = step_batches(part, own, self._settings, seed, iteration)
            if self._reference is None:
                found.append([*rows])
            else:
                in_place = self._reference.in_place()
                found.append(with_reference(rows, self._velocity_step, in_place))
        return found

    # ---- Metrics ----

    def _reward_metrics(self, rewards: Sequence[float | None], size: int) -> dict[str, float]:
        known = [reward for reward in rewards if reward is not None]
        spreads = []
        for start in range(0, len(rewards), size):
            group = [r for r in rewards[start : start + size] if r is not None]
            spreads.append(float(np.std(group)) if group else 0.0)
        sums = torch.tensor(
            [sum(known), len(known), sum(spreads), len(spreads), self._rewards.failed],
            dtype=torch.float64,
        )
        self._rewards.failed = 0
        total, count, spread, groups, failed = sum_over_replicas(sums, self._run.groups).tolist()
        return {
            "reward/mean": total / max(count, 1.0),
            "reward/std_within_group": spread / max(groups, 1.0),
            "rewards_failed": failed,
        }

    def _texts_encoded(self) -> dict[str, float]:
        """Texts that went through the text encoders since the last step, over all replicas."""
        new = self._inputs.embeddings.encoded - self._texts_told
        self._texts_told = self._inputs.embeddings.encoded
        (total,) = sum_over_replicas(torch.tensor([float(new)]), self._run.groups).tolist()
        return {"flow/texts_encoded": total}

    # ---- Validation ----

    def validate(self) -> dict[str, float]:
        """The mean reward of deterministic samples to the validation rows, and a sheet of them."""
        dp, size = self._run.groups.dp, self._run.config.evaluation.group_size
        numbers = even_part(range(len(self._inputs.valid)), dp.rank(), dp.size())
        rows = [self._inputs.valid[number] for number in numbers]
        wanted = self._wanted(numbers, rows, size)
        sigmas = self._settings.sigmas(self._section.eval_sampling_steps)
        with with_average(self._average):
            samples = self._sample(wanted, _VALIDATION, sigmas, range(0))
        every = [row for row in rows for _ in range(size)]
        # Also without rows, because all replicas agree on errors.
        rewards, pictures = self._score(every, samples)
        self._validations += 1
        self._write_sheet(wanted, every, rewards, pictures)
        metrics = self._reward_metrics(rewards, size)
        return {
            "valid/reward": metrics["reward/mean"],
            "valid/rewards_failed": metrics["rewards_failed"],
        }

    def _write_sheet(
        self,
        wanted: Sequence[Wanted],
        rows: Sequence[Row],
        rewards: Sequence[float | None],
        pictures: Mapping[int, np.ndarray],
    ) -> None:
        mine = {
            (wanted[number].prompt, wanted[number].index): (
                rows[number].problem,
                picture,
                rewards[number],
            )
            for number, picture in pictures.items()
            if wanted[number].prompt < _SHEET_ROWS and wanted[number].index < _SHEET_COLUMNS
        }
        everyone = gather_objects(self._run.groups.gloo_group, mine)
        if not self._run.is_writer:
            return
        found = dict(sorted(item for part in everyone for item in part.items()))
        sheet = []
        for prompt in dict.fromkeys(key[0] for key in found):
            cells = [cell for key, cell in found.items() if key[0] == prompt]
            notes = ["no reward" if r is None else f"{r:.2f}" for _, _, r in cells]
            sheet.append(SheetRow(cells[0][0], [cell[1] for cell in cells], notes))
        folder, name = self._run.config.checkpoint.save, f"validation_{self._validations:04d}"
        path = None if folder is None else Path(folder) / "samples" / f"{name}.png"
        if self._section.frames is None:
            drawn = write_sheet(path, sheet)
        else:
            path = None if path is None else path.with_suffix(".webp")
            drawn = write_film_sheet(path, sheet, self._section.fps)
        self._run.pictures["valid/samples"] = drawn

    # ---- The loop's questions ----

    def state(self) -> dict[str, Any]:
        """The state, as JSON, that a resumed run needs beside the model."""
        return {**self._skips.state(), "validations": self._validations}

    def description(self) -> str:
        """A line for the run's banner."""
        rl, training = self._run.config.rl, self._run.config.training
        section = self._section
        return (
            f"{rl.grpo_prompts_per_step} prompts x {rl.grpo_group_size} {section.drawn} a step, "
            f"{section.sampling_steps} steps of sampling, {training.train_iters} steps"
        )


def _metrics_of(results: Sequence[StepResult]) -> dict[str, float]:
    """Means over the updates; the largest log-ratio is that of the first one, which has changed no
    weight yet."""
    metrics = mean_metrics([result.as_metrics() for result in results])
    if "flow/log_ratio_max" in metrics:
        metrics["flow/log_ratio_max"] = results[0].metrics["flow/log_ratio_max"]
    return {
        **metrics,
        "learning-rate": results[-1].learning_rate,
        "updates": len(results),
        "skipped_updates": sum(result.skipped for result in results),
    }
