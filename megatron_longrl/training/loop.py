"""The loop around a training step: where to start, when to validate, save and report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron.core.optimizer import MegatronOptimizer
from torch import nn

from megatron_longrl.checkpoint.loading import Loaded, load_checkpoint, load_weights
from megatron_longrl.checkpoint.retention import Retention
from megatron_longrl.checkpoint.saver import CheckpointSaver
from megatron_longrl.observability.health_checks import HealthMonitor
from megatron_longrl.observability.logging import MetricsLogger
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.platforms import platform
from megatron_longrl.processes import exit_signal
from megatron_longrl.processes.rank_watch import rank_watch
from megatron_longrl.training.banner import banner
from megatron_longrl.training.model import TrainedModel
from megatron_longrl.training.run import Run

logger = logging.getLogger(__name__)


class Trainer(Protocol):
    """The work that a run repeats, whatever its policy."""

    samples_per_step: int
    """The samples of a step over all replicas, which the logs count."""
    validates: bool
    """Whether there is anything to validate with; the same on every rank."""
    is_ahead: bool
    """Whether work of the next step is under way, so that the run cannot end before it is done."""

    def step(self, iteration: int, goes_on: Callable[[int], bool]) -> dict[str, float]:
        """One step; metrics over all replicas.

        Args:
            iteration: steps that are done.
            goes_on: a function of a step (counted from 0): whether another step follows before a
                checkpoint, so that work for it may begin.
        """

    def validate(self) -> dict[str, float]:
        """Measure how good the policy is; returns metrics ``valid/...`` over all replicas."""

    def state(self) -> dict[str, Any]:
        """Return the state, as JSON, that a resumed run needs beside the model and finds in
        ``Loaded.state``. The loop adds the key ``best``."""

    def description(self) -> str:
        """Describe the data and the size of a step, for the line that introduces the run."""


class FurtherModel(Protocol):
    """A model that is trained beside the policy and saved with it, as the critic of PPO."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules by their names in checkpoints."""

    @property
    def optimizers(self) -> Mapping[str, MegatronOptimizer]:
        """The optimizers by the names of the modules."""

    def begin(self, policy: Any) -> None:
        """Start from the weights of the policy's module, where no checkpoint has others."""

    def restore_schedule(self, iteration: int) -> None:
        """Put the schedule where it was after this number of steps."""


def start(run: Run, critic: FurtherModel | None = None) -> Loaded:
    """Load weights, optimizer and position as --load and --pretrained-checkpoint say.

    A critic that no checkpoint has begins with the policy's weights.

    ``pretrained_checkpoint`` gives the weights of a new stage (SFT before RL); ``load`` continues
    an interrupted run, and takes precedence if it has a checkpoint.
    """
    config, model = run.config, run.model
    loaded = None
    if config.checkpoint.load is not None and not config.checkpoint.finetune:
        loaded = load_checkpoint(
            config.checkpoint.load,
            modules=_modules(model, critic),
            optimizers=_optimizers(model, critic),
            scheduler=model.scheduler,
            groups=run.groups,
            config=config,
            checkpoint=config.checkpoint,
        )
    if loaded is not None:
        if critic is not None:
            critic.restore_schedule(loaded.iteration)
        return loaded
    loaded = _first_weights(run)
    if critic is not None:
        critic.begin(model.policy.module)
    return loaded


def _first_weights(run: Run) -> Loaded:
    """Load the weights of another run or of a Hugging Face folder, where one is named."""
    config, model = run.config, run.model
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
        groups=run.groups,
        config=config,
    )


def _modules(model: TrainedModel, critic: FurtherModel | None) -> dict[str, nn.Module]:
    """The modules that a checkpoint holds, by name."""
    return {**model.modules, **(critic.modules if critic is not None else {})}


def _optimizers(model: TrainedModel, critic: FurtherModel | None) -> dict[str, MegatronOptimizer]:
    """The optimizers of :func:`_modules`."""
    return {**model.optimizers, **(critic.optimizers if critic is not None else {})}


class TrainingLoop:
    """Runs steps until ``train_iters``; validates, logs and saves, and ends where a signal asks it
    to.

    Args:
        loaded: the state that :func:`start` returned.
        critic: saved with the model.
    """

    def __init__(self, run: Run, loaded: Loaded, critic: FurtherModel | None = None) -> None:
        checkpoint = run.config.checkpoint
        self.runtime = run
        self.config = run.config
        self.critic = critic
        self.carry_from = loaded.folder if loaded.folder != Path() else None
        self.iteration = loaded.iteration
        here = checkpoint.save is not None and loaded.folder.parent == Path(checkpoint.save)
        self._saved = loaded.iteration if here else 0
        """Steps in the newest checkpoint below --save; 0 where there is none."""
        self._ends = False
        """Whether the step that is under way is the last one, as a signal has asked."""
        self.retention = Retention(
            checkpoint.keep_last_checkpoints,
            checkpoint.keep_best_checkpoint_by,
            loaded.state.get("best"),
        )
        self.saver = CheckpointSaver(self.retention, run.groups, run.config)

    def run(self, trainer: Trainer) -> None:
        """All remaining steps; writes metrics, checkpoints and, at the end, a last checkpoint."""
        logger.info("run: %s", banner(self.runtime, trainer.description()))
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
            summary = f"--load {folder} continues from there"
        stop.where += f"; {summary}"

    def _run(self, trainer: Trainer) -> None:
        log = MetricsLogger(self.config, self.runtime.entry, self.runtime.is_writer)
        log.truncate_after(self.iteration)
        try:
            self._steps(trainer, log)
            # In the last step, too; launchers then end with its status.
            self._stop_if_asked(trainer)
        except exit_signal.Stopped:
            log.close()
            raise
        log.close()

    def _steps(self, trainer: Trainer, log: MetricsLogger) -> None:
        config, interval = self.config, self.config.checkpoint.save_interval
        monitor = HealthMonitor(
            config.algorithm.advantage, steps=config.training.train_iters - self.iteration
        )
        if self.iteration == 0 and config.evaluation.at_start and trainer.validates:
            with rank_watch.during("validation"):
                metrics = trainer.validate()
                log.log_step(0, metrics, pictures=self.runtime.take_pictures())
        while self.iteration < config.training.train_iters:
            self._stop_if_asked(trainer)
            stop: exit_signal.Stopped | None = None
            self.saver.poll()
            self.runtime.timer.pop()  # Validation and set-up are no part of a step.
            began = time.perf_counter()
            metrics = trainer.step(
                self.iteration,
                lambda step: not self._ends and not self._is_due(interval, step + 1),
            )
            self.iteration += 1
            metrics["iteration-time"] = time.perf_counter() - began
            metrics["mem-max-allocated-bytes"] = self._peak_memory()
            metrics |= self.runtime.timer.pop()
            if self._is_due(config.evaluation.interval, self.iteration) and trainer.validates:
                try:
                    with rank_watch.during("validation"):
                        metrics |= trainer.validate()
                except exit_signal.Stopped as asked:
                    stop = asked  # when the step, which is done, has been told of
            log.log_step(
                self.iteration,
                metrics,
                consumed_samples=self.iteration * trainer.samples_per_step,
                batch_size=trainer.samples_per_step,
                skipped=metrics.get("skipped_updates", 0) > 0,
                pictures=self.runtime.take_pictures(),
            )
            for line in monitor.check(metrics):
                log.warn(self.iteration, line)
            if config.checkpoint.save is not None and self._is_due(interval, self.iteration):
                self._save(config.checkpoint.save, metrics, trainer.state())
            if stop is not None:
                raise stop

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """End the run between two steps, if a signal has asked for it; collective over the world.
        Where work of the next step is under way already, that step is completed first."""
        try:
            self.runtime.stop_if_asked()
        except exit_signal.Stopped:
            if not trainer.is_ahead:
                raise
            self._ends = True

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
            metrics: the metrics of the last step, by which the checkpoint is compared with others;
                None compares it with none.
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
            modules=_modules(model, critic),
            optimizers=_optimizers(model, critic),
            scheduler=model.scheduler,
            state={**state, "best": self.retention.state()},
            carry_from=self.carry_from,
        )
