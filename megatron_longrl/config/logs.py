"""Fields of logging."""

from __future__ import annotations

from typing import Literal

from megatron_longrl.config.section import PositiveInt, Section


class LoggingSection(Section):
    """logging: log line, TensorBoard, wandb (metrics.jsonl is always written to --save)"""

    log_interval: PositiveInt = 1
    """Steps between two log lines; metrics.jsonl has every step."""

    log_format: Literal["short", "megatron"] = "short"
    """What a step prints: a short line for people, or Megatron's line with all metrics, which
    <save>/log.txt has in any case."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are printed."""

    tensorboard_dir: str | None = None
    """Folder of TensorBoard event files; by default none are written."""

    wandb_project: str | None = None
    """Weights & Biases project; by default nothing is sent."""

    wandb_exp_name: str | None = None
    """Name of the run in Weights & Biases; by default the name of the --save folder."""

    wandb_mode: Literal["online", "offline"] = "offline"
    """offline writes the run below --save, to be sent later by `wandb sync`."""
