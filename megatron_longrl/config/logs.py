"""Fields of logging."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from megatron_longrl.config.section import KnownTo, Metavar, PositiveInt, Programs, Section, Unit


class LoggingSection(Section):
    """logging: log line, TensorBoard, Weights & Biases

    metrics.jsonl and log.txt in the --save folder are always written; docs/metrics.md describes
    them.
    """

    programs: ClassVar[Programs] = ("sft", "rl")

    log_interval: Annotated[PositiveInt, Unit("steps")] = 1
    """Steps from one log line to the next, which has the means over them; metrics.jsonl has every
    step."""

    log_format: Literal["short", "megatron"] = "short"
    """Form of the line that is printed for a step. short: a line of about eight figures with the
    remaining time; megatron: Megatron's line with all metrics, which log.txt in the --save folder
    has in any case."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], KnownTo("sft", "rl", "evaluate")
    ] = "info"
    """Least severe messages that are printed."""

    tensorboard_dir: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of TensorBoard event files; by default none are written."""

    wandb_project: Annotated[str | None, Metavar("NAME")] = None
    """Weights & Biases project; by default nothing is sent."""

    wandb_exp_name: Annotated[str | None, Metavar("NAME")] = None
    """Name of the run in Weights & Biases; by default the name of the --save folder."""

    wandb_mode: Literal["online", "offline"] = "offline"
    """Mode of Weights & Biases: online sends metrics at once; offline writes them into the --save
    folder, from where `wandb sync` sends them later."""
