"""An installed package has everything that the package of a clone has, and finds its recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.wheel import ROOT, build_wheel

RECIPE, BASE = "quickstart/grpo.yaml", "quickstart/model.yaml"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def files(folder: Path, pattern: str = "**/*") -> set[str]:
    """All files, by their path below the folder."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def longrl(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the package of the wheel, and of nothing else, in a folder."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-m", "megatron_longrl", *arguments],
        cwd=folder,
        env={**own, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


def test_it_holds_the_package_and_the_recipes(site: Path) -> None:
    recipes = {f"recipes/{name}" for name in files(ROOT / "examples", "*/*.yaml")}
    assert f"recipes/{RECIPE}" in recipes
    assert files(site / "megatron_longrl") == files(ROOT / "megatron_longrl") | recipes


def test_its_programs_start(site: Path) -> None:
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "longrl = megatron_longrl.cli.main:main" in entry_points.read_text()


def test_a_recipe_and_its_base_are_found_by_name(site: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"problem": "?", "answer": "A"}\n' * 64)
    (tmp_path / "tokenizer.model").touch()
    data = ("--train-data-path", "train.jsonl", "--valid-data-path", "train.jsonl")
    flags = ("--config", RECIPE, "--tokenizer-model", "tokenizer.model", *data, "--print-config")
    done = longrl(site, tmp_path, "train-rl", *flags)
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    for name, field in ((RECIPE, "grpo_prompts_per_step"), (BASE, "hidden_size")):
        recipe = yaml.safe_load((ROOT / "examples" / name).read_text())
        assert printed[field] == recipe[field]


def test_a_wrong_name_lists_the_recipes_of_the_wheel(site: Path, tmp_path: Path) -> None:
    done = longrl(site, tmp_path, "train-rl", "--config", "qwen/grpo.yaml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --config qwen/grpo.yaml: no such file, and no recipe")
    assert all(name in line for name in files(ROOT / "examples", "*/*.yaml"))
