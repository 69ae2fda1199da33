"""The entry points as functions of Python; keyword names are the flags'.

    from megatron_longrl.api import evaluate, train_rl, train_sft

    train_sft(pretrained_checkpoint="Qwen2.5-VL-3B", train_data_path="sft.jsonl", save="runs/sft")
    train_rl(pretrained_checkpoint="runs/sft", train_data_path="train.jsonl", save="runs/grpo")
    answers = evaluate(load="runs/grpo", data="test.jsonl")
    answers["accuracy"]

Each starts its ranks in processes of their own, as ``longrl`` does on the command line, and returns
when they have ended. ``config`` names a recipe; ``nproc_per_node`` is the number of ranks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longrl.config.names import flag
from megatron_longrl.errors import UserError

Value = str | Path | int | float | bool | None | Sequence[Any] | Mapping[str, Any]


def train_sft(**flags: Value) -> list[dict[str, float]]:
    """Supervised fine-tuning.

    Returns:
        The metrics of every step, as in ``<save>/metrics.jsonl``; none without ``save``.

    Raises:
        UserError: with the line that the run has told.
    """
    return _train("train-sft", flags)


def train_rl(**flags: Value) -> list[dict[str, float]]:
    """Reinforcement learning; see :func:`train_sft`."""
    return _train("train-rl", flags)


def evaluate(**flags: Value) -> dict[str, Any]:
    """Answer a data set.

    Returns:
        The contents of ``--output``: ``accuracy`` and other means, and ``answers``.

    Raises:
        UserError: see :func:`train_sft`.
    """
    with tempfile.TemporaryDirectory(prefix="longrl-") as folder:
        output = Path(str(flags.get("output") or Path(folder) / "answers.json"))
        _run("evaluate", {**flags, "output": output})
        answers: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return answers


def to_arguments(flags: Mapping[str, Value]) -> list[str]:
    """The command line of some flags: ``bf16=True`` is ``--bf16``, ``lr=None`` is left out."""
    arguments: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        if value is True:
            arguments.append(flag(name))
        elif value is False:
            arguments.append(flag(name[3:] if name.startswith("no_") else f"no_{name}"))
        elif isinstance(value, Mapping):
            arguments += [flag(name), json.dumps(value)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            arguments += [flag(name), *map(str, value)]
        else:
            arguments += [flag(name), str(value)]
    return arguments


def _train(subcommand: str, flags: Mapping[str, Value]) -> list[dict[str, float]]:
    from megatron_longrl.observability.metrics_file import METRICS_FILE, read_metrics

    _run(subcommand, flags)
    folder = flags.get("save") or flags.get("load")
    return read_metrics(Path(str(folder)) / METRICS_FILE) if folder else []


def _run(subcommand: str, flags: Mapping[str, Value]) -> None:
    command = [sys.executable, "-m", "megatron_longrl", subcommand, *to_arguments(flags)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as run:
        assert run.stderr is not None
        message = ""
        for line in run.stderr:
            sys.stderr.write(line)
            if line.startswith("error: "):
                message = line.removeprefix("error: ").strip()
    if run.returncode:
        raise UserError(message or f"longrl {subcommand} has ended with status {run.returncode}")
