"""The loop around a training step: where to start, when to validate, save and report."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist

from megatron_longrl.checkpoint.loading import Loaded, load_checkpoint, load_weights
from megatron_longrl.checkpoint.retention import Retention
from megatron_longrl.checkpoint.saver import CheckpointSaver
from megatron_longrl.config import Entry
from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.data.rows import Row
from megatron_longrl.observability.health_checks import HealthMonitor
from megatron_longrl.observability.logging import MetricsLogger
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.planner.cost import HardwareProfile
from megatron_longrl.platforms import platform
from megatron_longrl.processes import exit_signal
from megatron_longrl.processes.rank_watch import rank_watch
from megatron_longrl.training.banner import banner
from megatron_longrl.training.runtime import Runtime
from megatron_longrl.training.usable_rows import SkipLimit, usable_rows

if TYPE_CHECKING:
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.training.critic import Critic

logger = logging.getLogger(__name__)


class DataIterator:
    """The source of a step's data rows.

    Args:
        consumed: rows taken before this step.
        rows_per_step: over all replicas, a multiple of their number.
        goes_on: of a step (counted from 0), whether another one follows before a checkpoint, so
            that its rows may be taken ahead, and responses left to it.
    """

    def __init__(
        self,
        sampler: RowSampler,
        consumed: int,
        rows_per_step: int,
        groups: ParallelGroups,
        *,
        goes_on: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._sampler = sampler
        self._groups = groups
        self.consumed = consumed
        """Rows taken by all replicas so far."""
        self.rows_per_replica = rows_per_step // groups.dp.size()
        """Rows of a step for each replica."""
        self.goes_on = goes_on

    def next_rows(self) -> list[Row]:
        """Return the rows that :meth:`take` would return to this replica for a whole step."""
        first = self.consumed + self._groups.dp.rank() * self.rows_per_replica
        return self._sampler.take(first, self.rows_per_replica)

    def take(self, count: int | None = None) -> list[Row]:
        """The next rows for this replica; collective over the world.

        Args:
            count: how many, another number on every replica; by default those of a step.
        """
        wanted = self.rows_per_replica if count is None else count
        ranks = self._groups
        asked = gather_objects(ranks.gloo_group, (ranks.dp.rank(), wanted))
        by_replica = dict(asked)
        before = sum(by_replica[replica] for replica in range(ranks.dp.rank()))
        rows = self._sampler.take(self.consumed + before, wanted)
        self.consumed += sum(by_replica.values())
        return rows


class Trainer(Protocol):
    """One of the two stages: SFT or RL."""

    def step(self, iteration: int, source: DataIterator) -> dict[str, float]:
        """One step; metrics over all replicas."""

    def validate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Rows of this replica -> metrics over all replicas."""

    def state(self) -> dict[str, Any]:
        """Return the state, as JSON, that a resumed run needs beside the model."""


def start(runtime: Runtime, critic: Critic | None = None) -> Loaded:
    """Load weights, optimizer and position as --load and --pretrained-checkpoint say.

    A critic that no checkpoint has begins with the policy's weights.

    ``pretrained_checkpoint`` gives the weights of a new stage (SFT before RL); ``load`` goes on
    with an interrupted run, and wins where it has a checkpoint.
    """
    config, model = runtime.config, runtime.model
    loaded = None
    if config.checkpoint.load is not None and not config.checkpoint.finetune:
        loaded = load_checkpoint(
            config.checkpoint.load,
            modules=model.modules | (critic.modules if critic is not None else {}),
            optimizers=model.optimizers | (critic.optimizers if critic is not None else {}),
            scheduler=model.scheduler,
            groups=runtime.groups,
            config=config,
            checkpoint=config.checkpoint,
        )
    if loaded is not None:
        runtime.hardware = HardwareProfile.restored(loaded.state.get("machine"), runtime.hardware)
        if critic is not None:
            critic.restore_schedule(loaded.iteration)
        return loaded
    loaded = _first_weights(runtime)
    if critic is not None:
        critic.begin(model.policy.module)
    return loaded


def _first_weights(runtime: Runtime) -> Loaded:
    """Load the weights of another run or of a Hugging Face folder, where one is named."""
    config, model = runtime.config, runtime.model
    weights = (
        config.checkpoint.load
        if config.checkpoint.finetune
        else config.checkpoint.pretrained_checkpoint
    )
    if weights is None:
        return Loaded(Path())
    return load_weights(
        weights,
        modules=model.modules,
        optimizers=model.optimizers,
        groups=runtime.groups,
        config=config,
    )


class TrainingLoop:
    """Runs steps until ``train_iters``.

    Args:
        rows_per_step: rows taken from the data by one step, over all replicas.
        loaded: what :func:`start` returned.
        critic: saved with the model.
    """

    def __init__(
        self,
        runtime: Runtime,
        entry: Entry,
        rows_per_step: int,
        loaded: Loaded,
        critic: Critic | None = None,
    ) -> None:
        self.runtime = runtime
        self.critic = critic
        self.config = runtime.config
        self.entry = entry
        self.rows_per_step = rows_per_step
        self.samples_per_step = self.config.samples_per_step(dist.get_world_size(), entry)
        self.carry_from = loaded.folder if loaded.folder != Path() else None
        self.iteration = loaded.iteration
        here = self.config.checkpoint.save is not None and loaded.folder.parent == Path(
            self.config.checkpoint.save
        )
        self._saved = loaded.iteration if here else 0
        """Steps in the newest checkpoint below --save; 0 where there is none."""
        self._may_work_ahead = bool(self.config.rollout.lag or self.config.rollout.step_tokens)
        self._is_ahead = False
        """Whether rows or responses of the next step are under way."""
        self._ends = False
        """Whether the step that is under way is the last one, as a signal has asked."""
        self.consumed_rows = int(loaded.state.get("consumed_rows", 0))
        self.retention = Retention(
            self.config.checkpoint.keep_last_checkpoints,
            self.config.checkpoint.keep_best_checkpoint_by,
            loaded.state.get("best"),
        )
        self.saver = CheckpointSaver(self.retention, runtime.groups, self.config)
        rows = usable_rows(runtime, self.config.data.train_data_path, by_difficulty=True).rows
        self.rows = len(rows)
        self.sampler = RowSampler(rows, self.config.training.seed)
        self.skip_limit = SkipLimit(len(rows), self.config.data.max_skipped)
        validates = bool(self.config.data.valid_data_path)
        if validates and entry == "rl" and self.config.records.replay_rollouts is not None:
            logger.warning("no validation: --replay-rollouts starts no engine")
            validates = False
        valid: list[Row] = []
        if validates:
            found = usable_rows(runtime, self.config.data.valid_data_path, "heldout.jsonl")
            valid = found.rows[: self.config.evaluation.samples]
        self.valid_rows = runtime.rows_of_replica(valid)
        self.validates = bool(valid)
        """Whether the run validates, the same on every rank, though few rows leave some replicas
        without any."""

    def run(self, trainer: Trainer) -> None:
        """All remaining steps; writes metrics, checkpoints and, at the end, a last checkpoint."""
        summary = banner(self.runtime, self.entry, self.rows)
        logger.info("run: %s", summary)
        rank_watch.enter("step")
        with self.saver, exit_signal.safe_points():
            try:
                self._run(trainer)
            except exit_signal.Stopped as stop:
                self._save_before_end(trainer, stop)
                raise

    def _save_before_end(self, trainer: Trainer, stop: exit_signal.Stopped) -> None:
        """The steps that are done, so that none is done again."""
        folder, done = self.config.checkpoint.save, self.iteration
        stop.where = f"after step {done}"
        if folder is not None and done > self._saved:
            self._save(folder, None, trainer.state())
        self.saver.wait()
        summary = "nothing is saved"
        if folder is not None and self._saved:
            summary = f"--load {folder} goes on from there"
        stop.where += f"; {summary}"

    def _run(self, trainer: Trainer) -> None:
        log = MetricsLogger(self.config, self.entry, self.runtime.is_writer)
        log.truncate_after(self.iteration)
        try:
            self._steps(trainer, log)
            self._stop_if_asked()  # In the last step, too; launchers then end with its status.
        except exit_signal.Stopped:
            log.close()
            raise
        log.close()

    def _steps(self, trainer: Trainer, log: MetricsLogger) -> None:
        validate, interval = trainer.validate, self.config.checkpoint.save_interval
        monitor = HealthMonitor(
            self.config.algorithm.advantage, steps=self.config.training.train_iters - self.iteration
        )
        if self.iteration == 0 and self.config.evaluation.at_start and self.validates:
            with rank_watch.during("validation"):
                log.log_step(0, validate(self.valid_rows))
        while self.iteration < self.config.training.train_iters:
            self._stop_if_asked()
            stop: exit_signal.Stopped | None = None
            self.saver.poll()
            self.runtime.timer.pop()  # Validation and set-up are no part of a step.
            began = time.perf_counter()
            source = DataIterator(
                self.sampler,
                self.consumed_rows,
                self.rows_per_step,
                self.runtime.groups,
                goes_on=lambda step: not self._ends and not self._is_due(interval, step + 1),
            )
            metrics = trainer.step(self.iteration, source)
            self._is_ahead = self._may_work_ahead and source.goes_on(self.iteration)
            self.iteration += 1
            taken, self.consumed_rows = source.consumed - self.consumed_rows, source.consumed
            self.skip_limit.check(
                self.iteration, taken, int(metrics.get("samples_skipped", 0)), self._last_skip
            )
            metrics["iteration-time"] = time.perf_counter() - began
            metrics["mem-max-allocated-bytes"] = self._peak_memory()
            metrics |= self.runtime.timer.pop()
            if self._is_due(self.config.evaluation.interval, self.iteration) and self.validates:
                self.runtime.builder.max_frames = self.config.data.video_frames  # Of no curriculum.
                try:
                    with rank_watch.during("validation"):
                        metrics |= validate(self.valid_rows)
                except exit_signal.Stopped as asked:
                    stop = asked  # when the step, which is done, has been told of
            log.log_step(
                self.iteration,
                metrics,
                consumed_samples=self.iteration * self.samples_per_step,
                batch_size=self.samples_per_step,
                skipped=metrics.get("skipped_updates", 0) > 0,
            )
            for line in monitor.check(metrics):
                log.warn(self.iteration, line)
            due = self._is_due(self.config.checkpoint.save_interval, self.iteration)
            if self.config.checkpoint.save is not None and due:
                self._save(self.config.checkpoint.save, metrics, trainer.state())
            if stop is not None:
                raise stop

    def _stop_if_asked(self) -> None:
        """End the run between two steps, if a signal has asked for it; collective over the world.
        Where rows and responses of the next step are already being prepared, that step is completed
        first."""
        try:
            self.runtime.stop_if_asked()
        except exit_signal.Stopped:
            if not self._is_ahead:
                raise
            self._ends = True

    def _last_skip(self) -> str | None:
        """Return the reason for which a sample was last skipped, on any replica."""
        everyone = gather_objects(self.runtime.groups.gloo_group, self.runtime.last_skip)
        return next((reason for reason in everyone if reason is not None), None)

    def _peak_memory(self) -> int:
        """Bytes, of the rank that has used most: of the device, or of the process on a CPU."""
        return max(gather_objects(self.runtime.groups.gloo_group, platform.peak_memory_bytes()))

    def _is_due(self, interval: int | None, iteration: int) -> bool:
        """Every ``interval`` steps, and after the last one, interval or none."""
        if iteration == self.config.training.train_iters:
            return True
        return interval is not None and iteration % interval == 0

    def _save(
        self, directory: str, metrics: dict[str, float] | None, state: dict[str, Any]
    ) -> None:
        """Save the steps that are done.

        Args:
            metrics: of the last one, by which it is compared with others; None compares it with
                none.
        """
        with rank_watch.during("saving"):
            self._write(directory, metrics, state)

    def _write(
        self, directory: str, metrics: dict[str, float] | None, state: dict[str, Any]
    ) -> None:
        model, critic = self.runtime.model, self.critic
        self.saver.wait()  # or it would be judged by what comes after it
        if metrics is not None:
            self.retention.note(self.iteration, metrics)
        self._saved = self.iteration
        self.carry_from = self.saver.save(
            directory,
            self.iteration,
            modules=model.modules | (critic.modules if critic is not None else {}),
            optimizers=model.optimizers | (critic.optimizers if critic is not None else {}),
            scheduler=model.scheduler,
            # Measured anew, the choice of stages could differ, and with it the last bits.
            state={
                "consumed_rows": self.consumed_rows,
                "machine": dataclasses.asdict(self.runtime.hardware),
                "best": self.retention.state(),
                "trainer": state,
            },
            carry_from=self.carry_from,
        )
