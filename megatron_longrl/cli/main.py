"""``longrl SUBCOMMAND``: finds the module of the subcommand and hands it the arguments."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from megatron_longrl import __version__
from megatron_longrl.errors import USER_ERROR_STATUS, error_line
from megatron_longrl.processes import exit_signal
from megatron_longrl.processes.output_reader import until_reader_ends
from megatron_longrl.spelling import nearest

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "train-sft": ("train", "supervised fine-tuning on chains of thought"),
    "train-rl": ("train", "reinforcement learning: GRPO, DAPO, REINFORCE++, PPO and others"),
    "evaluate": ("train", "answer a data set with a checkpoint"),
    "generate": ("train", "draw pictures of prompts with a checkpoint"),
    "convert": ("convert", "convert checkpoints between Hugging Face, Megatron and PEFT"),
    "inspect": ("inspect", "show what a checkpoint holds"),
    "verify": ("verify", "compare a converted checkpoint with Hugging Face's modules"),
    "check": ("check", "look through data and their media before training"),
    "data": ("data", "bring benchmarks into rows"),
    "frames": ("frames", "write the frames of a video that training sees"),
    "score": ("score", "score responses as training scores them"),
}
"""Subcommand -> (module of :mod:`megatron_longrl.cli`, what it does)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 141 where the reader of the output has ended."""
    return until_reader_ends(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0 if given else USER_ERROR_STATUS
    if given[0] == "--version":
        sys.stdout.write(f"longrl {__version__}\n")
        return 0
    name, rest = given[0], given[1:]
    if name not in SUBCOMMANDS:
        hint = nearest(name.replace("_", "-"), list(SUBCOMMANDS)) or "; longrl --help lists them"
        sys.stderr.write(error_line(f"unknown subcommand '{name}'{hint}"))
        return USER_ERROR_STATUS
    if SUBCOMMANDS[name][0] == "train":
        return _train([name, *rest])
    module = importlib.import_module(f"megatron_longrl.cli.{SUBCOMMANDS[name][0]}")
    status: int = module.main(rest)
    return status


def _train(arguments: Sequence[str]) -> int:
    """A run, which handles signals before it imports anything that takes time."""

    def work() -> int:
        status: int = importlib.import_module("megatron_longrl.cli.train").main(arguments)
        return status

    def ended(stop: exit_signal.Stopped) -> int:
        sys.stderr.write(error_line(str(stop)))
        return stop.status

    return exit_signal.until_stopped(work, ended)


def overview() -> str:
    """All subcommands, a line each."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in SUBCOMMANDS.items()]
    return (
        "usage: longrl SUBCOMMAND [flags]\n\n"
        "Reinforcement learning of vision-language models on long videos.\n\n"
        + "\n".join(lines)
        + "\n\nlongrl SUBCOMMAND --help shows the flags of one.\n"
    )
