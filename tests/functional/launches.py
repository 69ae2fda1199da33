"""Launches of the entry points as a user makes them, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_longrl.observability.metric_catalogue import metric_of_step
from megatron_longrl.observability.metrics_file import Metrics, read_metrics
from tests.functional.reasons import reason_of
from tests.functional.warm import WarmLauncher

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("tiny.yaml")
SECONDS = 240
"""Longest time for a launch; on two free cores none takes more than 20."""

ENVIRONMENT: dict[str, str] = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
WARM = WarmLauncher(ROOT, ENVIRONMENT)

CP2 = ("--context-parallel-size", "2")
TP2 = ("--tensor-model-parallel-size", "2")
SFT = ("--train-iters", "60", "--lr", "3e-3", "--micro-batch-size", "16", "--save-interval", "40")
GRPO = (
    *("--train-iters", "5", "--lr", "3e-4", "--micro-batch-size", "2", "--save-interval", "2"),
    *("--grpo-prompts-per-step", "4", "--grpo-group-size", "8"),
)
FROZEN = ("--freeze-vision-tower", "--freeze-projector")
ENCODING = {"frames_encoded", "frames_decoded", "embeddings_from_memory", "embeddings_from_disk"}
"""Metrics that say where embeddings came from."""


@dataclass(frozen=True)
class Outcome:
    """How a launch ended."""

    status: int
    output: str
    """stdout and stderr."""
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines that tell a user's error."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    def succeeded(self) -> Outcome:
        """Itself; fails where the launch has failed."""
        assert self.status == 0, f"{reason_of(self.output)}\n{self.output[-6000:]}"
        return self


@dataclass(frozen=True)
class Arena:
    """A rendered data set and its tokenizer."""

    folder: Path

    def data(self, name: str) -> str:
        """The rows of ``sft``, ``train`` or ``heldout``."""
        return str(self.folder / "data" / f"{name}.jsonl")

    @property
    def tokenizer(self) -> str:
        return str(self.folder / "tok.model")

    @property
    def embeddings(self) -> Path:
        """Folder of embeddings that outlive a run."""
        return self.folder / "embeddings"

    @property
    def embedding_cache(self) -> tuple[str, ...]:
        """Flags of a run that keeps them."""
        return ("--embedding-cache-dir", str(self.embeddings), "--embedding-cache-gib", "0.1")

    def launch(
        self,
        program: str,
        *flags: str | Path,
        ranks: int = 2,
        seconds: float = SECONDS,
        watched: Mapping[str, str] | None = None,
        cold: bool = False,
    ) -> Outcome:
        """Run an entry point (``train_sft``, ``train_rl``, ``evaluate``) with the tiny recipe.

        Args:
            ranks: 1 needs no torchrun.
            watched: variables of tests/functional/watched.py, which then runs the program.
            cold: see :func:`run`.
        """
        module = [f"megatron_longrl.{program}"]
        if watched is not None:
            module.insert(0, "tests.functional.watched")
        command = [
            *("-m", *module, "--config", str(RECIPE), "--tokenizer-model", self.tokenizer),
            *map(str, flags),
        ]
        return run(command, ranks, seconds, watched or {}, cold)


def rl_flags(arena: Arena, sft_run: Path) -> tuple[str, ...]:
    """GRPO from the SFT checkpoint, with the encoder frozen."""
    data = ("--train-data-path", arena.data("train"), "--pretrained-checkpoint", str(sft_run))
    return (*GRPO, *FROZEN, *data)


def kill_and_resume(
    arena: Arena,
    program: str,
    flags: Sequence[str],
    folder: Path,
    at: str,
    watched: Mapping[str, str] | None = None,
) -> None:
    """The same run twice: first one rank is killed, then it goes on.

    Args:
        at: rank and step, see watched.py.
        watched: further variables of watched.py, for both.
    """
    flags = (*flags, "--save", str(folder), "--load", str(folder))
    kill = {"KILL_AT": at, **(watched or {})}
    killed = arena.launch(program, *flags, watched=kill, cold=True)
    assert killed.status != 0
    assert "SIGKILL" in killed.output
    # What was done after the checkpoint is there, and is forgotten when the run goes on.
    assert curve(metrics_of(folder), "iteration")[-1] == int(at.partition(":")[2])
    arena.launch(program, *flags, watched=watched).succeeded()


def without_encoding(steps: Sequence[Metrics]) -> list[Metrics]:
    """Metrics without what says where embeddings came from."""
    return [{k: v for k, v in step.items() if k not in ENCODING} for step in steps]


def run(
    command: Sequence[str],
    ranks: int,
    seconds: float,
    extra: Mapping[str, str] | None = None,
    cold: bool = False,
) -> Outcome:
    """Run Python with these arguments, on more than one rank as torchrun would.

    Args:
        cold: by torchrun itself, in new processes. Else from a process that has imported the
            libraries (tests/functional/warm.py), unless LONGRL_TEST_COLD is set.
    """
    extra = dict(extra or {})
    began = time.monotonic()
    if cold or "LONGRL_TEST_COLD" in os.environ or "PYTHONPATH" in extra:
        status, output = _run_cold(command, ranks, seconds, extra)
    else:
        status, output = WARM.run(command, ranks, seconds, extra)
    if status is None:
        raise AssertionError(f"no end after {seconds:g} s:\n{output[-6000:]}")
    outcome = Outcome(status, output, time.monotonic() - began)
    _note_launch(command, outcome.seconds)
    return outcome


def _run_cold(
    command: Sequence[str], ranks: int, seconds: float, extra: Mapping[str, str]
) -> tuple[int | None, str]:
    """Its exit status, None when it has not ended in time; and what it has printed."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    process = subprocess.Popen(
        [*launcher, *command],
        cwd=ROOT,
        env={**ENVIRONMENT, **extra},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return None, _rest(process)
    return process.returncode, output


def _note_launch(command: Sequence[str], seconds: float) -> None:
    """Write it where the runner wants to know of launches."""
    path = os.environ.get("LONGRL_TEST_LAUNCHES")
    if path is None:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
    programs = [word for word in command if word.startswith(("megatron_longrl.", "tools/"))]
    programs += [Path(word).name for word in command if word.endswith(".py")]
    programs += [word for word in command if not word.startswith("-")]
    line = {"test": test, "program": programs[0], "seconds": seconds}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def convert(loader: str, saver: str, start: Path, end: Path) -> None:
    """A checkpoint from folder to folder, compared after it."""
    tool = [str(ROOT / "tools/checkpoint/convert.py"), "--loader", loader, "--saver", saver]
    run([*tool, "--load-dir", str(start), "--save-dir", str(end), "--verify"], 1, 120).succeeded()


def _rest(process: subprocess.Popen[str]) -> str:
    """What it has printed; a process that it left behind may still hold the pipe."""
    try:
        return process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return said if isinstance(said, str) else said.decode(errors="replace")


def _end(process: subprocess.Popen[str]) -> None:
    """torchrun puts its ranks into sessions of their own: it gets the time to end them."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def metrics_of(run_folder: Path) -> list[Metrics]:
    """All steps of a run, without what no two runs have alike: seconds and memory.

    Every key must be one that the catalogue of metrics knows.
    """
    steps = read_metrics(run_folder / "metrics.jsonl")
    unknown = {key for step in steps for key in step if metric_of_step(key) is None}
    assert not unknown, f"megatron_longrl/observability/metric_catalogue has no entry for {unknown}"
    return [
        {k: v for k, v in step.items() if not k.startswith(("time/", "iteration-time", "mem-"))}
        for step in steps
    ]


def curve(steps: Sequence[Metrics], name: str) -> list[float]:
    """One metric over the steps."""
    return [step[name] for step in steps]


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A data file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: str | Path) -> list[dict[str, object]]:
    """The rows of a data file, their videos by absolute path."""
    path = Path(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{**row, "videos": str(path.parent / row["videos"])} for row in rows]
