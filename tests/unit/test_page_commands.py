"""Every command on the pages: run, or read by the parser of its program.

A block of commands is one whose language is bash; blocks without a language, and those of other
languages, hold none (:func:`test_commands_stand_in_blocks_of_bash`). What is done with a command
depends on its program alone:

=====================================  ============================================================
longrl check, data, frames, score;     run, on small files that have the names that the pages use
longrl --help; python -c
longrl train-sft, train-rl, evaluate,  flags and values become the configuration of a run by the
megatron_longrl.train_…, serve rules for its ranks, as for --print-config; files must exist
longrl convert, inspect, verify;       run up to the point where its own parser has taken all
tools/*.py; other modules of ours      arguments
torchrun                               its options by its own parser, its module as above
launchers of examples/                 run with --print-config
bash SCRIPT                            the script exists and parses; of tests/run.sh the arguments
FOREIGN                                another project's: files of ours that it names must exist
=====================================  ============================================================

Another program fails the test: give it a place here. tests/functional/test_page_commands.py runs
the README's commands as they are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml

from megatron_longrl.cli import main as program
from megatron_longrl.cli.given import PROGRAMS, read_given
from megatron_longrl.cli.load import load_config
from megatron_longrl.cli.ranks import split_rank_options
from megatron_longrl.cli.train import ENTRIES, default_ranks
from megatron_longrl.config import Entry
from tests import real_tokenizers
from tests.page_commands import ROOT, Block, blocks
from tests.runner import __main__ as runner
from tests.unit.evaluation.published import SAMPLES

FOREIGN = ("cd", "docker", "export", "git", "hf", "pip", "sbatch", "source", "wandb")
FOREIGN_MODULES = ("build", "pip", "pytest", "venv")
RUN = ("check", "data", "frames", "score")
MORE = ("...", "…")
"""Stands for flags that matter elsewhere."""
WHAT_A_RUN_NEEDS = ["--pretrained-checkpoint", "MODEL", "--train-data-path", "DATA"]
OURS = re.compile(r"(\.ci|docker|docs|examples|requirements|tests|tools)/[\w./-]+")

BLOCKS = [block for block in blocks() if block.language == "bash"]


class Accepted(Exception):
    """A parser has taken all arguments."""


# ---- Files by the names that the pages use ----

ROWS = [
    {"problem": "Where?\nA. left\nB. right", "answer": "B", "videos": "clip.mp4"},
    {"problem": "What is 6 * 7?", "answer": "42"},
]
MODELS = ("MODEL", "Qwen2.5-VL-7B", "Qwen2.5-VL-7B-Instruct", "runs/sft", "runs/grpo")
PIPELINES = ("stable-diffusion-3.5-medium", "runs/flow")
RECIPE = {"pretrained_checkpoint": "MODEL", "train_data_path": ["DATA"], "video_frames": 4}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run commands in."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("docker", "examples", "requirements", "tests", "tools"):
        (folder / name).symlink_to(ROOT / name)
    for name in MODELS:
        (folder / name).mkdir(parents=True)
        real_tokenizers.write(folder / name, "qwen2.5-vl")
        (folder / name / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (folder / "DATA").mkdir()
    for name in PIPELINES:
        (folder / name / "transformer").mkdir(parents=True)
        for file, kind in (
            ("model_index.json", "StableDiffusion3Pipeline"),
            ("transformer/config.json", "SD3Transformer2DModel"),
        ):
            (folder / name / file).write_text(json.dumps({"_class_name": kind}))
    _write_clip(folder / "clip.mp4")
    (folder / "DATA" / "clip.mp4").symlink_to(folder / "clip.mp4")
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("DATA/train.jsonl", "TEST.jsonl", "rows.jsonl", "data.jsonl"):
        (folder / name).write_text(rows)
    for name in ("prompts.jsonl", "heldout.jsonl", "prompts.txt"):
        (folder / name).write_text('{"prompt": "a red square"}\n')
    response = {"response": "<think>so</think><answer>B</answer>"}
    (folder / "responses.jsonl").write_text(2 * (json.dumps(response) + "\n"))
    SAMPLES["video_mme"](folder / "Video-MME")
    given = {"problem_id": "000-1", "response": "C"}
    (folder / "predictions.jsonl").write_text(json.dumps(given) + "\n")
    steps = [{"iteration": i, "time/rollout": 2.0, "iteration-time": 3.0} for i in (1, 2, 3)]
    for name in ("sft", "grpo"):
        metrics = folder / "runs" / name / "metrics.jsonl"
        metrics.write_text("".join(json.dumps(step) + "\n" for step in steps))
    for name in ("recipe.yaml", "grpo.yaml"):
        (folder / name).write_text(yaml.safe_dump(RECIPE))
    return folder


def _write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(24):
            pixels = np.full((48, 64, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


# ---- What is done with a command ----


def attempt(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a command of a page, or have its program read it; in the present folder."""
    name, rest = words[0], words[1:]
    if name in MORE:
        name, rest = "longrl", ["train-rl", *MORE[:1], *rest]
    if name == "longrl":
        _longrl(rest, patch)
    elif name == "torchrun":
        _torchrun(rest, patch)
    elif name == "python":
        _python(rest, patch)
    elif name == "bash":
        _script(rest)
    else:
        assert name in FOREIGN, f"{name}: which kind of command is this? see the docstring above"
        _names_files_that_exist(rest)


def _longrl(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    name = arguments[0]
    if name in ENTRIES:
        options, flags = split_rank_options(arguments[1:])
        flags = _completed(flags)
        ranks = options.nproc_per_node or default_ranks(read_given(flags, ENTRIES[name]))
        _configuration(ENTRIES[name], flags, ranks * options.nnodes, patch)
    elif name in RUN or name.startswith("--"):
        # Standard output of a test is no terminal: no bar is drawn.
        assert program.main(arguments) == 0
    else:
        assert name in program.SUBCOMMANDS, f"longrl {name}: no such subcommand"
        module = importlib.import_module(f"megatron_longrl.cli.{program.SUBCOMMANDS[name][0]}")
        _until_accepted(lambda: module.main(arguments[1:]), patch)


def _completed(flags: list[str]) -> list[str]:
    """With what an ellipsis stands for."""
    found = []
    for word in flags:
        found += WHAT_A_RUN_NEEDS if word in MORE else [word]
    return found


def _configuration(entry: Entry, flags: list[str], ranks: int, patch: pytest.MonkeyPatch) -> None:
    with patch.context() as inner:
        inner.delenv("RANK", raising=False)
        inner.setenv("WORLD_SIZE", str(ranks))
        with pytest.raises(SystemExit) as end:
            load_config([*flags, "--print-config"], entry, files=True)
    assert end.value.code == 0


def _torchrun(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import get_args_parser

    if arguments[0] in MORE:
        arguments = arguments[1:]
    options = get_args_parser().parse_args(arguments)
    assert options.module, "torchrun runs modules here: give -m"
    rest = arguments[arguments.index(options.training_script) + 1 :]
    ranks = int(options.nproc_per_node) * int(options.nnodes.partition(":")[0])
    _configuration(_entry_of(options.training_script), _completed(rest), ranks, patch)


def _entry_of(module: str) -> Entry:
    entries = {f"megatron_longrl.{name}": entry for entry, name in PROGRAMS.items()}
    assert module in entries, f"{module} is no entry point"
    return entries[module]


def _python(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    if arguments[0] == "-c":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return
    if arguments[0] != "-m":
        path = Path(arguments[0])
        assert path.is_file(), f"{path} does not exist"
        patch.setattr("sys.argv", arguments)
        _until_accepted(lambda: runpy.run_path(str(path), run_name="__main__"), patch)
        return
    module, rest = arguments[1], arguments[2:]
    if module == "megatron_longrl":
        _longrl(rest, patch)
    elif module.startswith("megatron_longrl.") and module.split(".", 1)[1] in PROGRAMS.values():
        _configuration(_entry_of(module), _completed(rest), 1, patch)
    elif module in FOREIGN_MODULES:
        _names_files_that_exist(rest)
    else:
        patch.setattr("sys.argv", [module, *rest])
        _until_accepted(importlib.import_module(module).main, patch)


def _until_accepted(work: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
    """Run a program until its parser has taken the arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise Accepted

    before = list(sys.path)
    with patch.context() as inner:
        inner.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Accepted):
            work()
    sys.path[:] = before


def _script(arguments: list[str]) -> None:
    script, rest = arguments[0], arguments[1:]
    subprocess.run(["bash", "-n", script], check=True, capture_output=True)
    if script == "tests/run.sh":
        _, others = runner._parser().parse_known_args(rest)
        _names_files_that_exist(others)
    elif re.fullmatch(r"examples/(?!slurm)\w+/\w+\.sh", script):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        command = ["bash", script, *rest, "--print-config"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr


def _names_files_that_exist(arguments: list[str]) -> None:
    for word in arguments:
        if OURS.fullmatch(word):
            assert Path(word.partition("::")[0]).exists(), f"{word} does not exist"


# ---- Tests ----


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in BLOCKS])
def test_commands(block: Block, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = block.commands()
    assert commands, "no command: is the block of another language?"
    monkeypatch.chdir(sandbox)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for command in commands:
        try:
            attempt(command, monkeypatch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block.name}: {' '.join(command)}: {error}") from error


def test_commands_stand_in_blocks_of_bash() -> None:
    """None is left out because its block has no language, or another one."""
    looks_like_one = re.compile(
        r"^(\$ |longrl |torchrun |python3? |bash |pip |sbatch )", re.MULTILINE
    )
    for block in blocks():
        if block.language != "bash":
            assert not looks_like_one.search(block.text), f"{block.name}: write ```bash"
    assert len(BLOCKS) > 15


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("longrl train-rll", "no such subcommand"),
        ("longrl train-rl ... --learning-rate 1", "unknown flag '--learning-rate'"),
        ("longrl train-rl ... --lr high", "lr = 'high'"),
        ("longrl train-sft ... --config gone.yaml", "gone.yaml"),
        ("longrl train-rl ... --grpo-prompts-per-step 3 --nproc-per-node 2", "not divisible"),
        ("longrl check gone.jsonl", ""),
        ("longrl convert --loader hf --saver megatron --load-dir a --save-dirs b", ""),
        ("torchrun --nprocs 2 -m megatron_longrl.train_rl ...", ""),
        ("torchrun --nproc-per-node 2 -m megatron_longrl.train ...", "no entry point"),
        ("python tools/gone.py", "does not exist"),
        ("python tools/seed_table.py --runs a", ""),
        ("bash tests/run.sh tests/gone.py", "does not exist"),
        ("bash examples/gone.sh", ""),
        ("pip install -r requirements/gone.txt", "does not exist"),
        ("make", "which kind of command"),
    ],
)
def test_what_a_page_must_not_say(
    command: str, reason: str, sandbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sandbox)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    block = Block(ROOT / "README.md", 1, "bash", command + "\n")
    (words,) = block.commands()
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception)) as raised:
        attempt(words, monkeypatch)
    assert reason in str(raised.value)


def test_blocks_are_split_as_bash_splits_them() -> None:
    text = (
        "A=1 longrl check a \\\n    --output b  # why\n"
        "for s in 4 5; do SEED=$s bash x.sh runs/$s; done\n"
        "python -c '\nprint(\"# no comment; one word\")\n' file && cd there\n"
    )
    assert Block(ROOT / "README.md", 1, "bash", text).commands() == [
        ["longrl", "check", "a", "--output", "b"],
        ["bash", "x.sh", "runs/$s"],
        ["python", "-c", '\nprint("# no comment; one word")\n', "file"],
        ["cd", "there"],
    ]
