"""Logging of a training run's steps: console, log.txt, metrics.jsonl and trackers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from megatron_longrl.atomic_file import atomic_write_text, writable
from megatron_longrl.config import Config, Entry
from megatron_longrl.config.paths import absolute_paths
from megatron_longrl.config.recipe import to_yaml
from megatron_longrl.errors import printable
from megatron_longrl.observability.log_line import LogInterval
from megatron_longrl.observability.metrics_file import METRICS_FILE, MetricsFile
from megatron_longrl.observability.progress import ProgressLines
from megatron_longrl.observability.short_line import ShortLine
from megatron_longrl.observability.trackers import TensorBoardTracker, Tracker, WandbTracker

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

RECIPE_FILE = "config.yaml"

LOG_FILE = "log.txt"
"""Megatron's line of every step, in the ``--save`` folder."""

LIBRARIES = ("megatron.core", "vllm", "torch", "transformers", "openai", "httpx", "httpx2")
"""Loggers that report their set-up, or every request, at INFO."""


def configure_logging(level: str, rank: int) -> None:
    """Send this process's log messages to stderr, marked with its rank.

    Messages of libraries about themselves, and messages that are the same on every rank, are shown
    at ``debug`` only.
    """
    debug = level == "debug"
    handler = logging.StreamHandler()
    form = f"[%(asctime)s] rank {rank} %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(RecordFormatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if debug:
        return
    # Of settings that belong to models with positions of media, and are read by others.
    logging.getLogger("transformers.modeling_rope_utils").setLevel(logging.ERROR)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    if rank != 0 and level == "info":
        logging.getLogger("megatron_longrl").setLevel(logging.WARNING)


class RecordFormatter(logging.Formatter):
    """Names of files and texts of models are part of messages: their characters neither look like
    another record nor move the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        first, *others = map(printable, super().format(record).split("\n"))
        return "\n".join([first, *(line and f"    {line}" for line in others)])


class MetricsLogger:
    """Writes each step to metrics.jsonl, TensorBoard and wandb, and every so often a log line.

    One rank is the writer (Megatron's last rank); on all others every method does nothing.
    """

    def __init__(self, config: Config, entry: Entry, is_writer: bool) -> None:
        """Open the files; on the writing rank, also write the recipe as `<save>/config.yaml`."""
        self._config = config
        self._is_writer = is_writer
        self._interval = LogInterval()
        self._short = ShortLine(config.training.train_iters)
        self._log: TextIO | None = None
        self._file: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        self.progress = ProgressLines(entry, config.training.train_iters)
        """Prints a line without disturbing the progress bar; only the writer uses it."""
        if not is_writer:
            return
        if config.checkpoint.save is not None:
            self._file = MetricsFile(Path(config.checkpoint.save) / METRICS_FILE)
            with writable(Path(config.checkpoint.save) / RECIPE_FILE) as path:
                # With absolute paths, so that it means the same in another folder.
                atomic_write_text(path, to_yaml(config.replace(**absolute_paths(config.given()))))
            with writable(Path(config.checkpoint.save) / LOG_FILE) as path:
                self._log = path.open("a", encoding="utf-8")
        if config.logging.tensorboard_dir is not None:
            self._trackers.append(TensorBoardTracker(config.logging.tensorboard_dir))
        if config.logging.wandb_project is not None:
            self._trackers.append(
                WandbTracker(config.logging, config.checkpoint.save, entry, config.flat())
            )

    def truncate_after(self, iteration: int) -> None:
        """Forget the steps after `iteration`, which the run starts from; 0 starts the file anew.

        It has to be called once before the first step, so that a run that was killed and resumed
        leaves the metrics of one that never was.
        """
        if self._file is not None:
            self._file.truncate_after(iteration)

    def log_step(
        self,
        iteration: int,
        metrics: Mapping[str, float],
        *,
        consumed_samples: int | None = None,
        batch_size: int | None = None,
        skipped: bool = False,
        pictures: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Tell about one step, validation after it included (keys `valid/...`).

        Args:
            iteration: number of finished steps; 0 for a validation before the first.
            metrics: values by Megatron's names where they exist: `lm loss`, `grad-norm`,
                `learning-rate`, `iteration-time` (seconds), `time/<phase>` (seconds). Ints are
                counts, which the log line sums; floats are averaged.
            consumed_samples: training samples of all steps so far.
            batch_size: samples of this step.
            skipped: the optimizer made no update.
            pictures: uint8 [height, width, 3] by name, which trackers show.
        """
        if not self._is_writer:
            return
        values = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
        record: dict[str, float] = {"iteration": iteration}
        if consumed_samples is not None:
            record["consumed_train_samples"] = consumed_samples
        if batch_size is not None:
            record["batch-size"] = batch_size
        record |= values
        if self._file is not None:
            self._file.append(record)
        for tracker in self._trackers:
            tracker.log(iteration, {k: v for k, v in record.items() if k != "iteration"})
            for name, pixels in (pictures or {}).items():
                tracker.picture(iteration, name, pixels)

        self._interval.add(values, skipped)
        total = self._config.training.train_iters
        if iteration % self._config.logging.log_interval == 0 or iteration == total:
            interval, self._interval = self._interval, LogInterval()
            line = interval.line(iteration, total, consumed_samples, batch_size, datetime.now())
            if self._log is not None:
                with writable(Path(self._log.name)):
                    self._log.write(line + "\n")
                    self._log.flush()
            short = self._config.logging.log_format == "short"
            self.progress.line(self._short.line(iteration, interval.values()) if short else line)
        self.progress.step(iteration, _summary(values))

    def warn(self, iteration: int, line: str) -> None:
        """Tell of something that looks wrong after `iteration`."""
        if self._is_writer:
            logger.warning("step %d: %s", iteration, line)

    def close(self) -> None:
        """Flush everything. Not needed for metrics.jsonl, which is complete after each step."""
        self.progress.close()
        if self._log is not None:
            self._log.close()
        for tracker in self._trackers:
            tracker.close()


def _summary(values: Mapping[str, float]) -> str:
    """A few words for the progress bar."""
    shown = {"lm loss": "loss", "reward/mean": "reward", "accuracy/mean": "accuracy"}
    return "  ".join(f"{name} {values[key]:.3f}" for key, name in shown.items() if key in values)
