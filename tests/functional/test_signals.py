"""Runs that a signal ends: what is done is saved, nothing outlives them, and they go on as if there
had been none."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_longrl.checkpoint.folder import newest_complete
from tests.functional.launches import (
    CP2,
    ENVIRONMENT,
    RECIPE,
    ROOT,
    SFT,
    Arena,
    Outcome,
    metrics_of,
    rl_flags,
    without_encoding,
)

MARK = "LONGRL_TEST_RUN"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def left_over(folder: Path) -> list[psutil.Process]:
    """Processes of a run, however they have come to be."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def started(folder: Path, command: tuple[str | Path, ...]) -> subprocess.Popen[str]:
    """A run, when it has done its third step."""
    run = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**ENVIRONMENT, MARK: str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert run.poll() is None and time.monotonic() < deadline, run.communicate(timeout=9)[0]
        time.sleep(0.02)
    return run


def ended(run: subprocess.Popen[str], folder: Path) -> Outcome:
    """How it ends, and that nothing of it is left a minute after the signal."""
    began = time.monotonic()
    output, _ = run.communicate(timeout=60)
    while left_over(folder):
        assert time.monotonic() - began < 60, left_over(folder)
        time.sleep(0.1)
    return Outcome(run.returncode, output, time.monotonic() - began)


def send_again(run: subprocess.Popen[str], number: signal.Signals) -> None:
    """As impatient people and schedulers do while a checkpoint is written."""
    deadline = time.monotonic() + 30
    while run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
        run.send_signal(number)


def assert_saved(folder: Path, iteration: int, name: str, output: str) -> None:
    told = f"error: ended by {name} after step {iteration}; --load {folder} continues from there"
    assert output.count(told) >= 1, output[-4000:]
    assert "Traceback" not in output.partition("error: ")[0]
    assert newest_complete(folder)[1]["iteration"] == iteration
    assert not list(folder.glob(".iter*"))


def test_a_signal_in_the_last_step_is_told(arena: Arena, tmp_path: Path) -> None:
    flags = (*SFT, "--train-data-path", arena.data("sft"), "--train-iters", "2")
    watched = {"SIGNAL_AT": "0:1:SIGTERM"}
    outcome = arena.launch("train_sft", *flags, "--save", tmp_path, ranks=1, watched=watched)
    assert outcome.status == 128 + signal.SIGTERM
    assert_saved(tmp_path, 2, "SIGTERM", outcome.output)


@pytest.mark.parametrize(
    ("watched", "done"),
    [
        ({"SIGNAL_IN_ROLLOUT": "1:3:SIGUSR1"}, 3),
        pytest.param(
            {"SIGNAL_AT": "0:2:SIGTERM"},
            3,
            marks=pytest.mark.full("tests/functional/test_signals.py::test_rl"),
        ),
    ],
    ids=["in a rollout", "in an update"],
)
def test_rl(
    arena: Arena, sft_run: Path, rl_run: Path, tmp_path: Path, watched: dict[str, str], done: int
) -> None:
    """One rank alone gets it; the others learn of it where all can stop."""
    folder = tmp_path / "run"
    flags = (*rl_flags(arena, sft_run), *CP2, *arena.embedding_cache)
    flags = (*flags, "--save", str(folder), "--load", str(folder))
    outcome = arena.launch("train_rl", *flags, watched=watched, cold=True)
    assert outcome.status != 0
    assert_saved(folder, done, next(iter(watched.values())).rpartition(":")[2], outcome.output)
    assert len(metrics_of(folder)) == done
    arena.launch("train_rl", *flags).succeeded()
    assert without_encoding(metrics_of(folder)) == without_encoding(metrics_of(rl_run))


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        (("-m", "megatron_longrl", "train-sft", "--nproc-per-node", "2"), signal.SIGUSR1),
        *(
            pytest.param(
                *case, marks=pytest.mark.full("tests/functional/test_signals.py::test_sft")
            )
            for case in [
                (("-m", "megatron_longrl", "train-sft", "--nproc-per-node", "2"), signal.SIGTERM),
                (("-m", "megatron_longrl", "train-sft", "--nproc-per-node", "2"), signal.SIGINT),
                ((*TORCHRUN, "-m", "megatron_longrl.train_sft"), signal.SIGTERM),
                ((*TORCHRUN, "-m", "megatron_longrl.train_sft"), signal.SIGINT),
            ]
        ),
    ],
    ids=["longrl USR1", "longrl TERM", "longrl INT", "torchrun TERM", "torchrun INT"],
)
def test_sft(
    arena: Arena,
    sft_run: Path,
    tmp_path: Path,
    launcher: tuple[str, ...],
    number: signal.Signals,
) -> None:
    """Who has started the ranks gets it."""
    folder = tmp_path / "run"
    flags = (*SFT, *CP2, "--train-data-path", arena.data("sft"))
    places = ("--save", folder, "--load", folder)
    recipe = ("--config", RECIPE, "--tokenizer-model", arena.tokenizer)
    run = started(folder, (*launcher, *recipe, *flags, *places))
    run.send_signal(number)
    if "megatron_longrl" in launcher and number != signal.SIGINT:
        send_again(run, number)
    outcome = ended(run, folder)
    if "megatron_longrl" in launcher:
        assert outcome.status == 128 + number
    done = len(metrics_of(folder))
    assert 3 <= done < 60
    assert_saved(folder, done, number.name, outcome.output)
    arena.launch("train_sft", *flags, *places).succeeded()
    assert metrics_of(folder) == metrics_of(sft_run)


@pytest.mark.full("tests/functional/test_signals.py::test_sft")
@pytest.mark.parametrize("launcher", ["longrl", "torchrun"])
def test_ranks_end_with_their_launcher(arena: Arena, tmp_path: Path, launcher: str) -> None:
    folder = tmp_path / "run"
    command: tuple[str | Path, ...] = (*TORCHRUN, "-m", "megatron_longrl.train_sft")
    if launcher == "longrl":
        command = ("-m", "megatron_longrl", "train-sft", "--nproc-per-node", "2")
    recipe = ("--config", RECIPE, "--tokenizer-model", arena.tokenizer, *SFT, *CP2)
    places = ("--train-data-path", arena.data("sft"), "--save", folder)
    run = started(folder, (*command, *recipe, *places))
    run.kill()
    ended(run, folder)
    steps = len(metrics_of(folder))
    time.sleep(1)
    assert len(metrics_of(folder)) == steps
