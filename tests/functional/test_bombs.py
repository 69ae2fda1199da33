"""Nothing that a folder of a stranger brings is run, whichever program opens it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.checksums import checksums
from tests import stock_folders
from tests.functional.launches import run, write_rows

GUARD = "tests/unit/checkpoint/test_trust.py::test_nothing_in_a_hugging_face_folder_is_run"
SHORT = (
    *("--train-iters", "1", "--rollout-max-tokens", "4"),
    *("--grpo-prompts-per-step", "1", "--grpo-group-size", "2"),
)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)


def bare_pickle(fired: Path) -> bytes:
    return pickle.dumps(Bomb(fired))


def torch_pickle(fired: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": Bomb(fired)}, buffer)
    return buffer.getvalue()


def code(fired: Path) -> bytes:
    return f"open({str(fired)!r}, 'w').close()\nX = object\n".encode()


def template(fired: Path) -> bytes:
    """The ways out of Jinja that its sandbox is there for."""
    return (
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}"
        "{% if c.__name__ == 'PosixPath' %}"
        + f"{{{{ c({str(fired)!r}).touch() }}}}"
        + "{% endif %}{% endfor %}"
        f"{{{{ cycler.__init__.__globals__.os.mknod({str(fired)!r}) }}}}"
    ).encode()


def yaml_tag(fired: Path) -> bytes:
    return f"lr: !!python/object/apply:os.mknod ['{fired}']\n".encode()


BESIDE: dict[str, Callable[[Path], bytes]] = {
    **dict.fromkeys(
        (
            *("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "model.pt"),
            *("rng_state.pth", "rng_state_0.pth", "adapter_model.bin", "consolidated.00.pth"),
            *("common.pt", "optim.pt", "vocab.pkl", "tokenizer.pkl", "mp_rank_00_model_states.pt"),
        ),
        torch_pickle,
    ),
    **dict.fromkeys((".metadata", "tokenizer.model.pkl"), bare_pickle),
    **dict.fromkeys(
        (
            *(
                "modeling_own.py",
                "configuration_own.py",
                "tokenization_own.py",
                "processing_own.py",
            ),
            *("custom_generate/generate.py", "sitecustomize.py", "conftest.py", "torch.py"),
        ),
        code,
    ),
    "config.yaml": yaml_tag,
}
"""Files that libraries unpickle or run for those who trust them."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_folders.write(tmp_path_factory.mktemp("models") / "model", "qwen2_5_vl")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (48, 40), (90, 20, 0)).save(folder / "0.png")
    question = {"problem": "Which colour is it?\nA. red\nB. green", "answer": "A"}
    write_rows(folder / "rows.jsonl", [{**question, "images": ["0.png"]}, question])
    return folder / "rows.jsonl"


@pytest.fixture
def fired(tmp_path: Path) -> Iterator[Path]:
    """The folder in which bombs leave their names."""
    folder = tmp_path / "fired"
    folder.mkdir()
    yield folder
    assert not [path.name for path in folder.iterdir()]


def arm(folder: Path, fired: Path) -> None:
    """Put bombs beside a model, where its settings name those that are code."""
    for name, make in BESIDE.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make(fired / name.replace("/", "_")))
    own: dict[str, dict[str, Any]] = {
        "config.json": {"AutoConfig": "configuration_own.X", "AutoModel": "modeling_own.X"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.X", "tokenization_own.X"]},
        "processor_config.json": {"AutoProcessor": "processing_own.X"},
        "generation_config.json": {},
    }
    for name, auto_map in own.items():
        path = folder / name
        settings = json.loads(path.read_text())
        settings["auto_map"] = {
            **auto_map,
            **dict.fromkeys(
                ("AutoModelForCausalLM", "AutoModelForImageTextToText"), "modeling_own.X"
            ),
        }
        settings["custom_generate"] = "custom_generate"
        path.write_text(json.dumps(settings))


def longrl(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and output of a program, which tells what ends it in a line."""
    done = run(["-m", "megatron_longrl", *map(str, arguments)], 1, 120)
    if done.status:
        assert done.status in (1, 2) and len(done.errors) == 1, done.output[-3000:]
    assert "Traceback" not in done.output, done.output[-3000:]
    return done.status, done.output


def opening(model: Path, rows: Path, to: Path) -> dict[str, tuple[str | Path, ...]]:
    """Every program that opens a Hugging Face folder."""
    training = ("--pretrained-checkpoint", model, "--train-data-path", rows)
    return {
        "inspect": ("inspect", model),
        "convert": (
            *("convert", "--loader", "hf", "--saver", "megatron"),
            *("--load-dir", model, "--save-dir", to / "converted"),
        ),
        "verify": ("verify", "--hf-dir", model, "--megatron-dir", to / "converted"),
        "train-sft": ("train-sft", *training, "--train-iters", "1", "--save", to / "sft"),
        "train-rl": ("train-rl", *training, *SHORT, "--save", to / "rl"),
        "evaluate": (
            *("evaluate", "--load", to / "converted", "--eval-max-tokens", "4"),
            *("--data", rows, "--output", to / "answers.json"),
        ),
    }


@pytest.mark.full(GUARD)
def test_what_lies_beside_a_model_is_left_alone(
    model: Path, rows: Path, fired: Path, tmp_path: Path
) -> None:
    """Every program does its work; templates are run where nothing is reached."""
    armed = shutil.copytree(model, tmp_path / "model")
    arm(armed, fired)
    for name, command in opening(armed, rows, tmp_path).items():
        status, output = longrl(*command)
        assert status == 0, f"{name}: {output[-3000:]}"
        assert not list(fired.iterdir()), name


@pytest.mark.full(GUARD)
def test_a_template_reaches_nothing(model: Path, rows: Path, fired: Path, tmp_path: Path) -> None:
    armed = shutil.copytree(model, tmp_path / "model")
    (armed / "chat_template.jinja").write_bytes(template(fired / "template"))
    commands = opening(armed, rows, tmp_path)
    for name in ("train-sft", "train-rl"):
        status, output = longrl(*commands[name])
        assert status == 2 and "template" in output, output[-3000:]


@pytest.mark.full(GUARD)
def test_a_bomb_in_the_place_of_any_file_is_one_line(
    model: Path, rows: Path, fired: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in model.iterdir())
    assert len(names) >= 6
    for name in names:
        for make in (bare_pickle, torch_pickle):
            armed = shutil.copytree(model, tmp_path / "model")
            (armed / name).write_bytes(make(fired / name))
            commands = opening(armed, rows, tmp_path / "to")
            for program in ("inspect", "convert", "train-sft"):
                longrl(*commands[program])
                assert not list(fired.iterdir()), (name, program)
            shutil.rmtree(armed)
            shutil.rmtree(tmp_path / "to", ignore_errors=True)


@pytest.mark.full(GUARD)
def test_a_bomb_in_the_place_of_any_file_of_a_run_is_one_line(
    model: Path, rows: Path, fired: Path, tmp_path: Path
) -> None:
    training = ("--pretrained-checkpoint", model, "--train-data-path", rows)
    made = tmp_path / "made"
    assert longrl("train-sft", *training, "--train-iters", "1", "--save", made)[0] == 0
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    assert len(files) >= 12
    for name in files:
        for make in (bare_pickle, yaml_tag if name.endswith(".yaml") else torch_pickle):
            armed = shutil.copytree(made, tmp_path / "run")
            (armed / name).write_bytes(make(fired / Path(name).name))
            reseal(armed)
            longrl("inspect", armed, "--verify")
            longrl("train-sft", "--load", armed, "--train-iters", "2")
            export = ("--load-dir", armed, "--save-dir", tmp_path / "hf")
            longrl("convert", "--loader", "megatron", "--saver", "hf", *export)
            assert not list(fired.iterdir()), name
            shutil.rmtree(armed)
            shutil.rmtree(tmp_path / "hf", ignore_errors=True)


ENDLESS_TEMPLATE = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)


@pytest.mark.full(GUARD)
def test_a_template_without_an_end_is_one_line(model: Path, rows: Path, tmp_path: Path) -> None:
    armed = shutil.copytree(model, tmp_path / "model")
    (armed / "chat_template.jinja").write_text(ENDLESS_TEMPLATE)
    status, output = longrl(*opening(armed, rows, tmp_path)["train-sft"])
    assert status == 2 and "the template computes for more than" in output, output[-3000:]


@pytest.mark.full(GUARD)
def test_a_pipe_in_the_place_of_any_file_is_not_waited_for(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    for name in sorted(path.name for path in model.iterdir()):
        armed = shutil.copytree(model, tmp_path / "model")
        (armed / name).unlink()
        os.mkfifo(armed / name)
        commands = opening(armed, rows, tmp_path / "to")
        for program in ("inspect", "train-sft"):
            status, output = longrl(*commands[program])
            # Without its config.json the folder is no checkpoint at all.
            assert status == 2, (name, output[-3000:])
            assert "named pipe" in output or name == "config.json", (name, program, output)
        shutil.rmtree(armed)


@pytest.mark.full(GUARD)
def test_a_pipe_in_the_place_of_any_file_of_a_run_is_not_waited_for(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    training = ("--pretrained-checkpoint", model, "--train-data-path", rows)
    made = tmp_path / "made"
    assert longrl("train-sft", *training, "--train-iters", "1", "--save", made)[0] == 0
    for name in sorted(str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()):
        armed = shutil.copytree(made, tmp_path / "run")
        (armed / name).unlink()
        os.mkfifo(armed / name)
        status, output = longrl("train-sft", "--load", armed, "--train-iters", "2")
        assert status == 2, (name, output[-3000:])
        shutil.rmtree(armed)


def reseal(run_folder: Path) -> None:
    """As someone does who has changed files on purpose: sizes and checksums are right."""
    for path in run_folder.glob(f"iter_*/{layout.STATE_FILE}"):
        try:
            state = json.loads(path.read_text())
        except ValueError:
            continue
        names = [name for name in state["files"] if (path.parent / name).is_file()]
        state["files"] = {name: (path.parent / name).stat().st_size for name in names}
        state["checksums"] = checksums(path.parent, names)
        path.write_text(json.dumps(state))


@pytest.mark.full(GUARD)
def test_a_recipe_makes_no_objects(rows: Path, model: Path, fired: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(yaml_tag(fired / "recipe"))
    status, output = longrl(*("train-sft", "--config", tmp_path / "recipe.yaml"))
    assert status == 2 and "recipe.yaml" in output


def test_the_bombs_are_real(tmp_path: Path) -> None:
    for number, make in enumerate((bare_pickle, torch_pickle)):
        with pytest.raises(pickle.UnpicklingError):
            torch.load(io.BytesIO(torch_pickle(tmp_path / "not")), weights_only=True)
        data, mark = make(tmp_path / str(number)), tmp_path / str(number)
        if make is bare_pickle:
            pickle.loads(data)
        else:
            torch.load(io.BytesIO(data), weights_only=False)
        assert mark.exists()
    exec(code(tmp_path / "code"))
    assert (tmp_path / "code").exists()
