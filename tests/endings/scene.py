"""The run that is ended: GRPO of the tiny model on two ranks, its data, and itself unbroken."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from megatron_longrl.checkpoint.folder import newest_complete
from tests.endings.traces import MARK
from tests.functional.launches import (
    CP2,
    ENVIRONMENT,
    RECIPE,
    ROOT,
    SFT,
    Arena,
    metrics_of,
    rl_flags,
    run,
    without_encoding,
)

STEPS = 6
WITH_CHILD = """
import subprocess

started = []

def with_child(response, **_):
    "Starts a process that has left the worker's session, and nobody ends."
    if not started:
        started.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))
    return float("A" in response)
"""


@dataclass(frozen=True)
class Scene:
    """A folder with all that the runs need; what is there is used again."""

    folder: Path

    @property
    def arena(self) -> Arena:
        return Arena(self.folder / "arena")

    def prepare(self) -> None:
        """Render the data, and train the model that RL starts from."""
        if not (self.folder / "arena/tok.model").exists():
            write_arena(self.folder / "arena")
        sft = self.folder / "sft"
        if not (sft / "iter_0000060").is_dir():
            data = ("--train-data-path", self.arena.data("sft"), "--save", sft)
            self.arena.launch("train_sft", *SFT, *CP2, *data).succeeded()
        (self.folder / "reward.py").write_text(WITH_CHILD)

    def flags(self, save: Path) -> tuple[str, ...]:
        """Of a run, which goes on where the folder holds one."""
        function = f"{self.folder / 'reward.py'}:with_child"
        return (
            *(*rl_flags(self.arena, self.folder / "sft"), *CP2, "--train-iters", str(STEPS)),
            *("--reward-function", function, "--max-skipped", "0"),
            *("--save", str(save), "--load", str(save)),
        )

    def command(self, launcher: str, save: Path, *flags: str) -> list[str]:
        """The command line of a run.

        Args:
            launcher: ``longrl`` or ``torchrun``.
        """
        if launcher == "torchrun":
            start = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            start += ["-m", "megatron_longrl.train_rl"]
        else:
            start = ["megatron_longrl", "train-rl", "--nproc-per-node", "2"]
        recipe = ("--config", str(RECIPE), "--tokenizer-model", self.arena.tokenizer)
        return [sys.executable, "-m", *start, *recipe, *self.flags(save), *flags]

    def unbroken(self, *flags: str) -> Path:
        """The folder of a run that nothing has happened to."""
        folder = self.folder / "-".join(("unbroken", *(flag.strip("-") for flag in flags)))
        if not (folder / f"iter_{STEPS:07d}").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            self.arena.launch("train_rl", *self.flags(folder), *flags).succeeded()
        return folder


def write_arena(folder: Path) -> None:
    """Clips of moving cups, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    arena = Arena(folder)
    clips = ["--clips", "72", "--sft-clips", "32", "--heldout-clips", "16", "--frames", "8"]
    swaps = ["--swaps", "2", "--min-swaps", "1", "--seed", "5", "--workers", "1"]
    cups = ["-m", "megatron_longrl.arena.cups", "--output", str(folder / "data")]
    run([*cups, *clips, *swaps], 1, 60).succeeded()
    tokens = ["tools/train_tokenizer.py", "--data", arena.data("sft"), "--symbols", "cups"]
    run([*tokens, "--output", arena.tokenizer], 1, 60).succeeded()


@dataclass
class Run:
    """One that is under way, and what it prints, by time."""

    process: subprocess.Popen[str]
    mark: str
    folder: Path
    lines: list[tuple[float, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, command: list[str], mark: str, folder: Path, temporary: Path) -> Run:
        """Launch it as a user does."""
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**ENVIRONMENT, MARK: mark, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        run_ = cls(process, mark, folder)
        threading.Thread(target=run_._read, daemon=True).start()
        return run_

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def output(self) -> str:
        """All of it so far."""
        return "\n".join(line for _, line in self.lines)

    @property
    def errors(self) -> list[str]:
        """The lines that tell of one."""
        return [line for _, line in self.lines if line.startswith("error: ")]

    @property
    def steps(self) -> int:
        """How many are done."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None


def differences(one: Path, other: Path) -> list[str]:
    """In what the folders of two runs are not the same, bit by bit: metrics and last checkpoint."""
    found = []
    steps, expected = (without_encoding(metrics_of(folder)) for folder in (one, other))
    if len(steps) != len(expected):
        found.append(f"{len(steps)} steps instead of {len(expected)}")
    for step, right in zip(steps, expected, strict=False):
        names = [name for name in step.keys() | right.keys() if step.get(name) != right.get(name)]
        if names:
            found.append(f"step {right['iteration']}: {', '.join(sorted(names)[:4])}")
    ours, theirs = (_contents(folder) for folder in (one, other))
    if ours.keys() != theirs.keys():
        found.append(f"files of the checkpoint: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    files = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    return found + [f"checkpoint: {name}" for name in sorted(files)[:4]]


def _contents(folder: Path) -> dict[str, object]:
    """Checksums of the weights and the optimizer in the newest checkpoint, and torch's random
    states. Python's and NumPy's are vLLM's, which seeds them when it starts."""
    newest, state = newest_complete(folder)
    sums: dict[str, Any] = state["checksums"]
    contents: dict[str, object] = {"": newest.name}
    for name in sums:
        if name.startswith("__"):
            contents[name] = sums[name]
        elif name.startswith("rng/"):
            states = load_file(newest / name)
            drawn = {
                k: v.tolist() for k, v in states.items() if not k.startswith(("python", "numpy"))
            }
            contents[name] = drawn
    return contents
