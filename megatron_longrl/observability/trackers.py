"""Destinations of metrics and pictures besides the run's folder: TensorBoard and wandb."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.config.logs import LoggingSection
from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

WANDB_RUN_ID = "wandb_run_id.txt"
"""File in the save folder by which a resumed run continues its wandb run."""

WANDB_START_SECONDS = 30.0
"""Training waits no longer than this for wandb to come up."""


class Tracker(Protocol):
    """Takes the metrics of steps."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take one step."""

    def picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        """Take a picture, uint8 [height, width, 3], that belongs to a step."""

    def close(self) -> None:
        """Write out what is pending."""


class TensorBoardTracker:
    """Scalars under Megatron's key names."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._writer: SummaryWriter | None = None

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Steps from here on that an earlier, killed run has written are hidden.
            self._writer = SummaryWriter(self._directory, purge_step=iteration, flush_secs=30)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, iteration)

    def picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        assert self._writer is not None, "the metrics of the step come first"
        self._writer.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """A Weights & Biases run; a problem with it is a warning and never ends the training.

    Args:
        save: folder of the run, by which a resumed one continues the wandb run.
        recipe: the configuration that wandb shows.
    """

    def __init__(
        self, logs: LoggingSection, save: str | None, job_type: str, recipe: Mapping[str, Any]
    ) -> None:
        self._run: Any = None
        try:
            self._run = _start_wandb(logs, Path(save or "."), job_type, recipe)
        except (
            Exception
        ) as error:  # wandb raises many kinds, none of which matters to the training.
            logger.warning("wandb does not start, metrics are not sent to it: %s", error)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._send(iteration, {k: v for k, v in metrics.items() if math.isfinite(v)})

    def picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        if self._run is None:
            return
        import wandb

        self._send(iteration, {name: wandb.Image(pixels)})

    def _send(self, iteration: int, values: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.log(dict(values), step=iteration)
        except Exception as error:
            logger.warning("wandb stopped, metrics are no longer sent to it: %s", error)
            self._run = None

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _start_wandb(
    logs: LoggingSection, folder: Path, job_type: str, recipe: Mapping[str, Any]
) -> Any:
    import wandb

    mode = logs.wandb_mode
    # Without a key wandb would ask at the terminal, and the other ranks would wait with it.
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        logger.warning("wandb has no API key: the run is kept offline, send it by `wandb sync`")
        mode = "offline"
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=logs.wandb_project,
        name=logs.wandb_exp_name or folder.resolve().name,
        job_type=job_type,
        id=_wandb_run_id(folder),
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=dict(recipe),
        settings=wandb.Settings(init_timeout=WANDB_START_SECONDS, console="off", silent=True),
    )


def _wandb_run_id(folder: Path) -> str:
    """The id of the run in this folder, made on first use."""
    file = folder / WANDB_RUN_ID
    if not file.exists():
        atomic_write_text(file, uuid.uuid4().hex + "\n")
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: cannot read the id of the wandb run ({error}): remove the file, and a new "
            "one begins"
        ) from None
