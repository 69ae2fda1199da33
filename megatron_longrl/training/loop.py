"""The loop around a training step: where to start, when to validate, save and report."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_longrl.checkpoint.distributed import (
    Loaded,
    load_checkpoint,
    load_weights,
)
from megatron_longrl.checkpoint.retention import Retention
from megatron_longrl.checkpoint.saver import CheckpointSaver
from megatron_longrl.config import Entry
from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.data.rows import Row, load_rows
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.planner.cost import Machine
from megatron_longrl.platforms import platform
from megatron_longrl.training.logging import MetricsLogger
from megatron_longrl.training.runtime import Runtime

logger = logging.getLogger(__name__)

Step = Callable[[int, Sequence[Row]], dict[str, float]]
"""(iteration, rows of this replica) -> metrics over all replicas."""
Validate = Callable[[Sequence[Row]], dict[str, float]]
"""Rows of this replica -> metrics over all replicas."""


def start(runtime: Runtime) -> Loaded:
    """Weights, optimizer and position to go on from, as --load and --pretrained-checkpoint say.

    ``pretrained_checkpoint`` gives the weights of a new stage (SFT before RL); ``load`` goes on
    with an interrupted run, and wins where it has a checkpoint.
    """
    config, model = runtime.config, runtime.model
    loaded = None
    if config.load is not None and not config.finetune:
        loaded = load_checkpoint(
            config.load,
            modules=model.modules,
            optimizers=model.optimizers,
            scheduler=model.scheduler,
            groups=runtime.groups,
            config=config,
        )
    if loaded is not None:
        runtime.machine = Machine.remembered(loaded.state.get("machine"), runtime.machine)
        return loaded
    weights = config.load if config.finetune else config.pretrained_checkpoint
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
    """

    def __init__(self, runtime: Runtime, entry: Entry, rows_per_step: int, loaded: Loaded) -> None:
        self.runtime = runtime
        self.config = runtime.config
        self.entry = entry
        self.rows_per_step = rows_per_step
        self.samples_per_step = self.config.samples_per_step(dist.get_world_size(), entry)
        self.carry_from = loaded.folder if loaded.folder != Path() else None
        self.iteration = loaded.iteration
        self.consumed_rows = int(loaded.state.get("consumed_rows", 0))
        self.retention = Retention(
            self.config.keep_last_checkpoints,
            self.config.keep_best_checkpoint_by,
            loaded.state.get("best"),
        )
        self.saver = CheckpointSaver(self.retention, runtime.groups, self.config)
        with together(runtime.groups.control):
            self.sampler = RowSampler(load_rows(self.config.train_data_path), self.config.seed)
            valid = (
                load_rows(self.config.valid_data_path, "heldout.jsonl")
                if self.config.valid_data_path
                else []
            )
            self.valid_rows = runtime.share(valid[: self.config.eval_samples])

    def run(self, step: Step, validate: Validate) -> None:
        """All remaining steps; writes metrics, checkpoints and, at the end, a last checkpoint."""
        with self.saver:
            self._run(step, validate)

    def _run(self, step: Step, validate: Validate) -> None:
        log = MetricsLogger(self.config, self.entry, self.runtime.is_writer)
        log.truncate_after(self.iteration)
        if self.iteration == 0 and self.config.eval_at_start and self.valid_rows:
            log.log_step(0, validate(self.valid_rows))
        while self.iteration < self.config.train_iters:
            self.saver.poll()
            began = time.perf_counter()
            rows = self.sampler.take(self.consumed_rows, self.rows_per_step)
            metrics = step(self.iteration, self.runtime.share(rows))
            self.iteration += 1
            self.consumed_rows += self.rows_per_step
            metrics["iteration-time"] = time.perf_counter() - began
            metrics["mem-max-allocated-bytes"] = self._peak_memory()
            metrics |= self.runtime.timer.pop()
            if self._is_due(self.config.eval_interval) and self.valid_rows:
                metrics |= validate(self.valid_rows)
                self.runtime.timer.pop()
            log.log_step(
                self.iteration,
                metrics,
                consumed_samples=self.iteration * self.samples_per_step,
                batch_size=self.samples_per_step,
            )
            if self.config.save is not None and self._is_due(self.config.save_interval):
                self._save(self.config.save, metrics)
        log.close()

    def _peak_memory(self) -> int:
        """Bytes, of the rank that has used most: of the device, or of the process on a CPU."""
        return max(gather_objects(self.runtime.groups.control, platform.peak_memory_bytes()))

    def _is_due(self, interval: int | None) -> bool:
        """Every ``interval`` steps, and after the last one, interval or none."""
        if self.iteration == self.config.train_iters:
            return True
        return interval is not None and self.iteration % interval == 0

    def _save(self, directory: str, metrics: dict[str, float]) -> None:
        self.saver.wait()  # or it would be judged by what comes after it
        self.retention.note(self.iteration, metrics)
        self.carry_from = self.saver.save(
            directory,
            self.iteration,
            modules=self.runtime.model.modules,
            optimizers=self.runtime.model.optimizers,
            scheduler=self.runtime.model.scheduler,
            # Measured anew, the choice of stages could differ, and with it the last bits.
            state={
                "consumed_rows": self.consumed_rows,
                "machine": dataclasses.asdict(self.runtime.machine),
                "best": self.retention.state(),
            },
            carry_from=self.carry_from,
        )
