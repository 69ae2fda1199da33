"""The files around the package: scripts parse, recipes and launchers hold, the lock is whole."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from megatron_longrl.config import Entry, load_config

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", "docker", "examples", "tests", "tools")


def files(*patterns: str) -> list[str]:
    found = [path for f in FOLDERS for p in patterns for path in (ROOT / f).rglob(p)]
    return sorted(str(path.relative_to(ROOT)) for path in found)


SHELL_SCRIPTS = [*files("*.sh", "*.sbatch"), ".ci/run"]
RECIPES = [f for f in files("*.yaml") if f.startswith("examples/")]
LAUNCHERS = [f for f in SHELL_SCRIPTS if f.startswith("examples/longvila_r1/")]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("script", SHELL_SCRIPTS)
def test_shell_script_parses(script):
    result = run("bash", "-n", script)
    assert result.returncode == 0, result.stderr


# ---- Launchers and recipes ----


@pytest.fixture
def torchrun(tmp_path):
    """A folder with a torchrun that starts one process and announces all ranks to it."""
    command = tmp_path / "torchrun"
    command.write_text(
        "#!/usr/bin/env bash\n"
        "set -e\n"
        'while [[ "$1" != -m ]]; do\n'
        '  [[ "$1" != --nproc-per-node ]] || ranks="$2"\n'
        '  [[ "$1" != --nnodes ]] || nodes="$2"\n'
        "  shift\n"
        "done\n"
        f'RANK=0 WORLD_SIZE=$((ranks * nodes)) exec {sys.executable} "$@"\n'
    )
    command.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.parametrize("nodes", ["1", "4"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launcher_prints_its_configuration(launcher, nodes, torchrun):
    result = run(
        *("bash", launcher, "data", "model", "tokenizer", "out", "--print-config"),
        PATH=torchrun,
        NNODES=nodes,
    )
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["num_layers"] == 28
    assert config["tokenizer_model"] == "tokenizer"
    assert config["save"] == config["load"] == "out"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launcher_says_how_it_is_used(launcher):
    result = run("bash", launcher, "data")
    assert result.returncode == 2
    assert result.stderr.startswith("usage: ")


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "model" not in Path(r).name])
def test_recipe_is_valid(recipe, capsys):
    entry: Entry = "sft" if "sft" in Path(recipe).name else "rl"
    flags = ["--train-data-path", "d", "--valid-data-path", "d", "--tokenizer-model", "t"]
    with pytest.raises(SystemExit) as end:
        load_config(["--config", str(ROOT / recipe), *flags, "--print-config"], entry)
    assert end.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["train_iters"] > 0


# ---- The lock file ----


def locked() -> dict[str, str]:
    """Version by canonical name."""
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins), "only exact pins"
    return {canonicalize_name(n): v for n, v in (pin.split("==") for pin in pins)}


def missing_from_lock(requirements: list[str]) -> list[str]:
    pins = locked()
    needed = map(Requirement, requirements)
    return [
        str(r)
        for r in needed
        if (r.marker is None or r.marker.evaluate({"extra": ""}))
        and not r.specifier.contains(pins.get(canonicalize_name(r.name), ""), prereleases=True)
    ]


def test_lock_satisfies_what_setup_asks_for(monkeypatch):
    captured: dict[str, object] = {}
    monkeypatch.setattr("setuptools.setup", captured.update)
    runpy.run_path(str(ROOT / "setup.py"))
    extras = captured["extras_require"]
    assert isinstance(extras, dict) and isinstance(captured["install_requires"], list)
    assert not missing_from_lock(captured["install_requires"] + extras["cpu"] + extras["dev"])


def test_lock_is_closed_under_dependencies():
    left_out = {
        # requirements/cpu.txt says why.
        *("torchvision", "torchaudio", "torchcodec", "triton"),
    }
    open_ends = {
        name: lacking
        for name in locked()
        if (
            lacking := [
                r
                for r in missing_from_lock(requires(name) or [])
                if canonicalize_name(Requirement(r).name) not in left_out
            ]
        )
    }
    assert not open_ends


def test_environment_holds_the_lock():
    wrong = {name: pin for name, pin in locked().items() if version(name) != pin}
    assert not wrong, "bash tools/environment.sh brings the environment up to date"
    with suppress(PackageNotFoundError):
        assert version("torchvision").endswith("+cpu")


# ---- Making the environment: what can be shown in a moment ----


def test_environment_names_missing_python(tmp_path):
    result = run(
        *("bash", "tools/environment.sh"),
        LONGRL_VENV=str(tmp_path / "venv"),
        LONGRL_PYTHON="/nonexistent/python",
    )
    assert result.returncode != 0
    assert "none of these runs: /nonexistent/python" in result.stderr
    assert "LONGRL_PYTHON" in result.stderr


def test_environment_names_what_python_lacks(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/usr/bin/env bash\n[[ "$2" == *ensurepip* ]] && exit 1\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    result = run(
        *("bash", "tools/environment.sh"),
        LONGRL_VENV=str(tmp_path / "venv"),
        LONGRL_PYTHON=str(python),
    )
    assert result.returncode != 0
    assert "no venv module with ensurepip" in result.stderr


def test_environment_leaves_a_folder_of_others_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    result = run("bash", "tools/environment.sh", LONGRL_VENV=str(tmp_path))
    assert result.returncode != 0
    assert "is not a Python environment" in result.stderr
    assert (tmp_path / "thesis.tex").exists()
