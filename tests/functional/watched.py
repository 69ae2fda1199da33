"""An entry point under observation: ``python -m tests.functional.watched MODULE [flags]``.

``WATCH_FRAMES=FOLDER``: write what the vision encoder was given, a file of JSON lines per rank.
``KILL_AT=RANK:STEP``: that rank kills itself in the midst of that step (counted from 0).
``FAIL_AT=RANK:STEP``: that rank meets an error there which no other rank can see.
``SIGNAL_AT=RANK:STEP:NAME``: that rank gets a signal in the update of that step.
``SIGNAL_IN_ROLLOUT=RANK:NUMBER:NAME``: that rank gets a signal in that generation (from 0).
``HOLD_SAVE=RANK:NUMBER``: that rank never ends to write its checkpoint of that number (from 0).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from megatron_longrl.errors import UserError
from megatron_longrl.foreign_warnings import ignore_harmless_warnings
from megatron_longrl.observability.logging import configure_logging

RANK = os.environ.get("RANK", "0")
configure_logging("info", int(RANK))
ignore_harmless_warnings()  # as the program will, before core warns at its import

from megatron_longrl.checkpoint import saving  # noqa: E402
from megatron_longrl.models.vila.encoder import VisionEncoder  # noqa: E402
from megatron_longrl.training.train_step import TrainStep  # noqa: E402


def watch_frames(folder: Path) -> None:
    """A line per call of the encoder: updates done before, whether for a gradient, its frames."""
    folder.mkdir(parents=True, exist_ok=True)
    updates = [0]

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        if not isinstance(module, VisionEncoder):
            return
        pixels = inputs[0].flatten(0, 1).cpu()
        frames = [hashlib.sha256(frame.numpy().tobytes()).hexdigest() for frame in pixels]
        line = {"step": updates[0], "with_grad": torch.is_grad_enabled(), "frames": frames}
        with (folder / f"{RANK}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    torch.nn.modules.module.register_module_forward_hook(note)
    train = TrainStep.train

    def counting_train(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        result = train(self, *args, **kwargs)
        updates[0] += 1
        return result

    TrainStep.train = counting_train  # type: ignore[method-assign]


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL ends the process")


def fail() -> NoReturn:
    raise UserError(f"rank {RANK} alone has met a problem")


def get(name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])


def stop_at(place: str, stop: Callable[[], None]) -> None:
    """Stop after the rollouts of a step, where the other ranks go into a collective."""
    rank, _, step = place.partition(":")
    if rank != RANK:
        return
    train = TrainStep.train
    updates = [0]

    def train_or_stop(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        if updates[0] == int(step):
            stop()
        updates[0] += 1
        return train(self, *args, **kwargs)

    TrainStep.train = train_or_stop  # type: ignore[method-assign]


def signal_in_rollout(place: str) -> None:
    """Before the first token of a generation."""
    rank, number, name = place.split(":")
    if rank != RANK:
        return
    from megatron_longrl.rollout.vllm.generation import Generator

    run, generations = Generator.run, [0]

    def run_with_signal(self: Generator, *args: Any, **kwargs: Any) -> None:
        if generations[0] == int(number):
            get(name)
        generations[0] += 1
        run(self, *args, **kwargs)

    Generator.run = run_with_signal  # type: ignore[method-assign]


def hold_save(place: str) -> None:
    """Write nothing more at the beginning of a checkpoint's shards."""
    rank, _, number = place.partition(":")
    if rank != RANK:
        return
    writer, saves = saving.ShardWriter, [0]

    class Held(writer):  # type: ignore[misc, valid-type]
        def async_save(self, *args: Any) -> Any:
            request = super().async_save(*args)
            saves[0] += 1
            if saves[0] - 1 == int(number):
                return request._replace(async_fn=lambda: time.sleep(10**6))
            return request

    saving.ShardWriter = Held  # type: ignore[misc]


if __name__ == "__main__":
    if "HOLD_SAVE" in os.environ:
        hold_save(os.environ["HOLD_SAVE"])
    if "WATCH_FRAMES" in os.environ:
        watch_frames(Path(os.environ["WATCH_FRAMES"]))
    if "KILL_AT" in os.environ:
        stop_at(os.environ["KILL_AT"], die)
    if "FAIL_AT" in os.environ:
        stop_at(os.environ["FAIL_AT"], fail)
    if "SIGNAL_AT" in os.environ:
        where, _, signal_name = os.environ["SIGNAL_AT"].rpartition(":")
        stop_at(where, lambda: get(signal_name))
    if "SIGNAL_IN_ROLLOUT" in os.environ:
        signal_in_rollout(os.environ["SIGNAL_IN_ROLLOUT"])
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
