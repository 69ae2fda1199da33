"""``longrl``: subcommands, and what is said before a rank is started."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longrl.cli import main as program
from megatron_longrl.cli.given import Given
from megatron_longrl.cli.ranks import RankOptions, split_rank_options
from megatron_longrl.cli.train import default_ranks, gpus
from megatron_longrl.errors import UserError
from megatron_longrl.processes.output_reader import READER_ENDED_STATUS, until_reader_ends


def test_every_subcommand_has_its_module() -> None:
    for module, _ in program.SUBCOMMANDS.values():
        assert callable(importlib.import_module(f"megatron_longrl.cli.{module}").main)


def test_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in program.SUBCOMMANDS)
    assert program.main([]) == 2


def test_an_unknown_subcommand_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["train_rl"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown subcommand 'train_rl'; did you mean 'train-rl'?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train-rl", "--learning-rate", "1"], "error: unknown flag '--learning-rate'"),
        (["train-sft", "--nproc-per-node", "two"], "error: argument --nproc-per-node: invalid int"),
        (["evaluate", "--nnodes", "2"], "error: --nnodes 2 needs --master-addr and --master-port"),
        (["train-sft", "--lr"], "error: argument --lr: expected one argument"),
        (["train-sft"], "error: --train-data-path is missing; no model: give"),
    ],
)
def test_what_is_wrong_is_told_without_torch(arguments: list[str], line: str) -> None:
    program = (
        "import sys\n"
        "from megatron_longrl.cli.main import main\n"
        f"status = main({arguments!r})\n"
        "print(status, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_options_of_the_launcher_are_taken_out() -> None:
    options, rest = split_rank_options(
        ["--lr", "1", "--nproc-per-node", "4", "--nnodes=2", "--master-port", "9", "--bf16"]
    )
    assert options == RankOptions(nproc_per_node=4, nnodes=2, master_port=9)
    assert rest == ["--lr", "1", "--bf16"]
    with pytest.raises(UserError, match="at least 1"):
        split_rank_options(["--nproc-per-node", "0"])


@pytest.mark.parametrize(("devices", "ranks"), [("0,1,2", 3), ("", 4), ("-1", 4), ("GPU-5ba0", 1)])
def test_a_rank_for_each_gpu_or_one_replica(
    devices: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    layout = {"tensor_model_parallel_size": "2", "context_parallel_size": 2}
    assert default_ranks(Given("sft", layout)) == ranks


def test_no_gpu_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if not Path("/proc/driver/nvidia/gpus").exists():
        assert gpus() == 0


def test_a_rank_that_fails_ends_the_program(tmp_path: Path) -> None:
    """With its status, and with its line alone."""
    (tmp_path / "failing.py").write_text(
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '0': time.sleep(60)\n"
        "if sys.argv[1] != 'exit': os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
        "sys.stderr.write('error: this is why\\n')\n"
        "sys.exit(2)\n"
    )
    program = (
        "import sys\n"
        "from megatron_longrl.cli.ranks import RankOptions, run_ranks\n"
        "sys.exit(run_ranks('failing', sys.argv[1:], RankOptions(nproc_per_node=2)))\n"
    )
    for how, status, told in (
        ("exit", 2, "error: this is why\n"),
        ("SIGKILL", 137, "error: rank 1 was ended by SIGKILL\n"),
        (
            "SIGBUS",
            135,
            "error: rank 1 was ended by SIGBUS, most often because shared memory is full: see "
            "df -h /dev/shm\n",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, how],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (status, told)


@pytest.mark.parametrize(
    "arguments",
    [
        ["megatron_longrl", "--help"],
        ["megatron_longrl", "score", "--help"],
        ["megatron_longrl", "train-sft", "--help"],
        ["megatron_longrl.train_sft", "--help"],
        ["megatron_longrl.train_rl", "--help"],
        ["megatron_longrl.evaluate", "--help"],
    ],
)
def test_a_reader_that_has_ended_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
        )
    # argparse ignores that it cannot write a help longer than the buffer.
    assert done.stderr == "" and done.returncode in (0, READER_ENDED_STATUS)


def test_a_pipe_to_another_process_is_an_error() -> None:
    with pytest.raises(BrokenPipeError):
        until_reader_ends(lambda: (_ for _ in ()).throw(BrokenPipeError()))
