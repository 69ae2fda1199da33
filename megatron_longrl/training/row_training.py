"""Training on rows of data: the rows that a step takes, and the end where too many of them cannot
be used."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist

from megatron_longrl.config.data_sources import sources
from megatron_longrl.data.dataset import sampler_of
from megatron_longrl.data.rows import Row
from megatron_longrl.media import quarantine
from megatron_longrl.media.quarantine import Quarantine
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.planner.cost import HardwareProfile
from megatron_longrl.training.banner import counted
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.usable_rows import SkipLimit, usable_rows

if TYPE_CHECKING:
    from megatron_longrl.checkpoint.loading import Loaded
    from megatron_longrl.training.runtime import Runtime

logger = logging.getLogger(__name__)


class RowTrainer(Protocol):
    """One of the two stages of a language model: SFT or RL."""

    def step(self, iteration: int, source: DataIterator) -> dict[str, float]:
        """One step; metrics over all replicas."""

    def validate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Validate on rows of this replica; returns metrics over all replicas."""

    def state(self) -> dict[str, Any]:
        """Return the state, as JSON, that a resumed run needs beside the model."""


class TrainingRows:
    """The rows of a run that trains, and how far it has come in them; construction is collective
    over the world.

    Args:
        loaded: the state from which the run continues.

    Raises:
        UserError: on every rank, where too many rows cannot be used.
    """

    def __init__(self, runtime: Runtime, loaded: Loaded) -> None:
        config, entry = runtime.config, runtime.entry
        self.runtime = runtime
        self.rows_per_step = config.rows_per_step(dist.get_world_size(), entry)
        """Rows that one step takes, over all replicas."""
        self.consumed = int(loaded.state.get("consumed_rows", 0))
        """Rows taken by all replicas so far."""
        # Measured anew, the choice of stages could differ, and with it the last bits.
        runtime.hardware = HardwareProfile.restored(loaded.state.get("machine"), runtime.hardware)
        if config.checkpoint.save is not None:
            folder = Path(config.checkpoint.save) / quarantine.FOLDER
            writer = runtime.groups.dp.rank() if runtime.replica_rank == 0 else None
            runtime.builder.quarantine = Quarantine(folder, writer)
        rows = usable_rows(runtime, config.data.train_data_path, by_difficulty=True).rows
        self.number = len(rows)
        """Rows of an epoch."""
        weights = sources(config.data.train_data_path)[1]
        self.sampler = sampler_of(rows, config.training.seed, weights)
        self.skip_limit = SkipLimit(len(rows), config.data.max_skipped)
        validates = bool(config.data.valid_data_path)
        if validates and entry == "rl" and config.records.replay_rollouts is not None:
            logger.warning("no validation: --replay-rollouts starts no engine")
            validates = False
        valid: Sequence[Row] = ()
        if validates:
            found = usable_rows(runtime, config.data.valid_data_path, "heldout.jsonl")
            valid = found.rows[: config.evaluation.samples]
        self.valid = runtime.rows_of_replica(valid)
        """Validation rows of this replica."""
        self.validates = bool(valid)
        """Whether the run validates, the same on every rank, though few rows leave some replicas
        without any."""

    def state(self) -> dict[str, Any]:
        """Return the state, as JSON, that a resumed run needs."""
        hardware = dataclasses.asdict(self.runtime.hardware)
        return {"consumed_rows": self.consumed, "machine": hardware}


class RowTraining:
    """A :class:`~megatron_longrl.training.loop.Trainer` on rows of data.

    Args:
        rows: the rows of the run.
        trainer: does the work of a step.
    """

    def __init__(self, rows: TrainingRows, trainer: RowTrainer) -> None:
        self._rows = rows
        self._runtime = rows.runtime
        self._trainer = trainer
        config, entry = self._runtime.config, self._runtime.entry
        self.samples_per_step = config.samples_per_step(dist.get_world_size(), entry)
        self.validates = rows.validates
        self.is_ahead = False
        self._may_work_ahead = bool(config.rollout.lag or config.rollout.step_tokens)

    def step(self, iteration: int, goes_on: Callable[[int], bool]) -> dict[str, float]:
        """See :meth:`Trainer.step`; ends a run whose rows cannot be used."""
        rows = self._rows
        source = DataIterator(
            rows.sampler,
            rows.consumed,
            rows.rows_per_step,
            self._runtime.groups,
            goes_on=goes_on,
        )
        metrics = self._trainer.step(iteration, source)
        self.is_ahead = self._may_work_ahead and goes_on(iteration)
        taken, rows.consumed = source.consumed - rows.consumed, source.consumed
        skipped = int(metrics.get("samples_skipped", 0))
        rows.skip_limit.check(iteration + 1, taken, skipped, self._last_skip)
        return metrics

    def validate(self) -> dict[str, float]:
        """See :meth:`Trainer.validate`; the frames of a video are those of no curriculum."""
        runtime = self._runtime
        runtime.builder.max_frames = runtime.config.data.video_frames
        return self._trainer.validate(self._rows.valid)

    def state(self) -> dict[str, Any]:
        """See :meth:`Trainer.state`."""
        return {**self._rows.state(), "trainer": self._trainer.state()}

    def description(self) -> str:
        """See :meth:`Trainer.description`."""
        config, entry = self._runtime.config, self._runtime.entry
        step = counted(self.samples_per_step, "row")
        if entry == "rl":
            prompts, group = config.rl.grpo_prompts_per_step, config.rl.grpo_group_size
            step = f"{counted(prompts, 'prompt')} x {counted(group, 'response')}"
        steps = counted(config.training.train_iters, "step")
        return (
            f"{counted(self._rows.number, 'row')} of data, {step} a step, {steps}, at most "
            f"{config.training.seq_length} tokens a row"
        )

    def _last_skip(self) -> str | None:
        """Return the reason for which a sample was last skipped, on any replica."""
        everyone = gather_objects(self._runtime.groups.gloo_group, self._runtime.last_skip)
        return next((reason for reason in everyone if reason is not None), None)
