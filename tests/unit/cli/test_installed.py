"""Packages that an installation lacks are told in one line, before anything is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_longrl.cli.installed import missing_packages, unfit_torchvision


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own, in which nothing is installed."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    # A module that another test has imported would be found all the same.
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    return tmp_path


def install(packages: Path, name: str, version: str) -> None:
    (packages / name).mkdir()
    (packages / name / "__init__.py").touch()
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_vllm_is_needed_by_what_generates_with_it(packages: Path) -> None:
    (line,) = missing_packages({}, "rl")
    assert line.startswith("vLLM is not installed") and "megatron_longrl[cpu]" in line
    assert missing_packages({"rollout_engine": "server"}, "evaluate") == [line]
    assert not missing_packages({"rollout_engine": "megatron"}, "rl")
    assert not missing_packages({}, "sft")
    install(packages, "vllm", "0.32.0")
    assert not missing_packages({}, "rl")


@pytest.mark.parametrize(
    ("torch", "torchvision", "is_right"),
    [
        ("2.13.0+cpu", "0.28.0", False),
        ("2.13.0+cpu", "0.28.0+cu130", False),
        ("2.13.0+cpu", "0.28.0+cpu", True),
        ("2.13.0+cpu", None, True),
        ("2.13.0", "0.28.0", True),
        ("2.13.0a0+1f2e", "0.28.0a0+3d4c", True),
    ],
)
def test_torchvision_suits_torch(
    packages: Path, torch: str, torchvision: str | None, is_right: bool
) -> None:
    install(packages, "torch", torch)
    install(packages, "vllm", "0.32.0")
    if torchvision is not None:
        install(packages, "torchvision", torchvision)
    assert missing_packages({}, "rl") == unfit_torchvision()
    assert (not unfit_torchvision()) is is_right
    for line in unfit_torchvision():
        expected = f"torchvision {torchvision} cannot be loaded together with torch {torch}: "
        assert f"{expected}pip uninstall" in line
