"""The files around the package: scripts parse, recipes and launchers hold, the lock is whole."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from megatron_longrl.checkpoint.architecture import architecture_fields
from megatron_longrl.cli.load import load_config
from megatron_longrl.config import Config, Entry
from megatron_longrl.models.family import HfExport, find_family
from tests.runner.tiers import full_only

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", "docker", "examples", "tests", "tools")


def files(*patterns: str) -> list[str]:
    found = [path for f in FOLDERS for p in patterns for path in (ROOT / f).rglob(p)]
    return sorted(str(path.relative_to(ROOT)) for path in found)


SHELL_SCRIPTS = [*files("*.sh", "*.sbatch"), ".ci/run"]
RECIPES = [f for f in files("*.yaml") if f.startswith("examples/")]
LAUNCHERS = [f for f in SHELL_SCRIPTS if re.fullmatch(r"examples/(?!slurm)\w+/\w+\.sh", f)]

LAUNCHERS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NNODES", "NODE_RANK", "RANK", "WORLD_SIZE")
"""What torchrun and launchers read or set."""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A test of this process may have started torch.distributed, which leaves its variables.
    own = {name: v for name, v in os.environ.items() if name not in LAUNCHERS_VARIABLES}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**own, **environment}
    )


@pytest.mark.parametrize("script", SHELL_SCRIPTS)
def test_shell_script_parses(script):
    result = run("bash", "-n", script)
    assert result.returncode == 0, result.stderr


# ---- Launchers and recipes ----


SEVEN_B: dict[str, Any] = {
    "num_layers": 28,
    "hidden_size": 3584,
    "ffn_hidden_size": 18944,
    "num_attention_heads": 28,
    "num_query_groups": 4,
    "vocab_size": 151651,
    "max_position_embeddings": 262144,
    "untie_embeddings_and_output_weights": True,
    "vision_image_size": 448,
    "vision_patch_size": 14,
    "vision_hidden_size": 1152,
    "vision_num_layers": 27,
    "vision_num_attention_heads": 16,
    "vision_ffn_hidden_size": 4304,
    "projector_type": "mlp_downsample_2x2_fix",
    "seq_length": 8192,
}
"""LongVILA-7B."""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the settings of published sizes; of Qwen-VL, transformers' defaults."""
    root = tmp_path_factory.mktemp("checkpoints")
    vila = find_family("vila").hf_configs(Config.of(SEVEN_B), HfExport("bfloat16"))
    files: dict[str, dict[str, dict[str, Any]]] = {
        "vila": {**vila, "llm/tokenizer.json": {}},
        "qwen2_5_vl": {"config.json": {"model_type": "qwen2_5_vl"}, "tokenizer.json": {}},
        "qwen3_vl": {"config.json": {"model_type": "qwen3_vl"}, "tokenizer.json": {}},
        "qwen2_5_omni": {"config.json": {"model_type": "qwen2_5_omni"}, "tokenizer.json": {}},
    }
    for family, contents in files.items():
        for name, content in contents.items():
            (root / family / name).parent.mkdir(parents=True, exist_ok=True)
            (root / family / name).write_text(json.dumps(content))
    (root / "train.jsonl").write_text('{"problem": "?", "answer": "A"}\n' * 100)
    (root / "sft.jsonl").write_text('{"problem": "?", "answer": "A"}\n' * 100)
    (root / "eval.jsonl").write_text('{"problem": "?", "answer": "A"}\n')
    return root


FAMILIES = {"omni": "qwen2_5_omni"}
"""Of folders that are not called by it."""


def family_for(script: str) -> str:
    folder = Path(script).parent.name
    return folder if folder.startswith("qwen") else FAMILIES.get(folder, "vila")


@pytest.mark.parametrize(
    ("launcher", "nodes"),
    full_only(
        "tests/unit/test_project.py::test_launcher_prints_its_configuration",
        [
            pytest.param(launcher, nodes, id=f"{launcher}-{nodes}")
            for launcher in LAUNCHERS
            for nodes in ("1", "4")
        ],
        ["examples/longvila_r1/grpo_7b.sh-4", "examples/qwen3_vl/sft.sh-1"],
    ),
)
def test_launcher_prints_its_configuration(launcher: str, nodes: str, checkpoints: Path) -> None:
    model, data = str(checkpoints / family_for(launcher)), str(checkpoints)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = run("bash", launcher, model, data, "out", "--print-config", NNODES=nodes, PATH=path)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["model_family"] == family_for(launcher)
    assert config["save"] == config["load"] == "out"
    assert config["train_iters"] > 0


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launcher_says_how_it_is_used(launcher: str) -> None:
    result = run("bash", launcher, "data")
    assert result.returncode == 2
    assert result.stderr.startswith("usage: ")


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "model" not in Path(r).name])
def test_recipe_is_valid(
    recipe: str, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a checkpoint, which brings the model, unless the recipe describes one itself."""
    entry: Entry = "sft" if "sft" in Path(recipe).name else "rl"
    data = str(checkpoints / "train.jsonl")
    flags = ["--train-data-path", data, "--valid-data-path", data, "--save", "out"]
    folder = Path(recipe).parent.name
    describes = folder in ("quickstart", "hour", "flow")
    model = ["--diffusers-folder", "m"] if folder == "flow" else ["--tokenizer-model", "t"]
    if not describes:
        model = ["--pretrained-checkpoint", str(checkpoints / family_for(recipe))]
    with pytest.raises(SystemExit) as end:
        load_config(["--config", str(ROOT / recipe), *flags, *model, "--print-config"], entry)
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["train_iters"] > 0
    own = yaml.safe_load((ROOT / recipe).read_text())
    assert describes or not set(own) & set(architecture_fields(printed)), "training alone"


# ---- The lock file ----


def locked(name: str = "cpu") -> dict[str, str]:
    """Version by canonical name."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins), "only exact pins"
    return {canonicalize_name(n): v for n, v in (pin.split("==") for pin in pins)}


def missing_from_lock(requirements: list[str], lock: str = "cpu") -> list[str]:
    pins = locked(lock)
    needed = map(Requirement, requirements)
    return [
        str(r)
        for r in needed
        if (r.marker is None or r.marker.evaluate({"extra": ""}))
        and not r.specifier.contains(pins.get(canonicalize_name(r.name), ""), prereleases=True)
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py gives to setuptools."""
    captured: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", captured.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return captured


@pytest.mark.parametrize(
    "lock, extras",
    [
        ("cpu", ("cpu", "diffusion", "ocr", "tables", "dev")),
        ("gpu", ("gpu", "diffusion", "ocr", "tables")),
    ],
)
def test_lock_satisfies_what_setup_asks_for(
    lock: str, extras: tuple[str, ...], asked: dict[str, Any]
) -> None:
    for extra in extras:
        assert asked["extras_require"][extra]
        assert not missing_from_lock(asked["extras_require"][extra], lock)
    assert not missing_from_lock(asked["install_requires"], lock)


def test_gpu_lock_has_the_tested_versions() -> None:
    """But for what is built otherwise there."""
    other = {"apache-tvm-ffi", "nvtx", "setuptools", "torch"}
    cpu, gpu = locked("cpu"), locked("gpu")
    shared = cpu.keys() & gpu.keys()
    assert len(shared) > 100
    assert {name for name in shared if cpu[name] != gpu[name]} <= other
    assert cpu["torch"] == f"{gpu['torch']}+cpu"


def test_image_has_the_transformer_engine_that_core_asks_for(asked: dict[str, Any]) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    version_line = re.search(r"^ARG TRANSFORMER_ENGINE_VERSION=(\S+)$", dockerfile, re.MULTILINE)
    assert version_line is not None
    (ours,) = map(Requirement, asked["extras_require"]["transformer-engine"])
    cores = [
        needed
        for text in requires("megatron-core") or []
        if canonicalize_name((needed := Requirement(text)).name) == ours.name
    ]
    assert cores, "megatron-core names a range"
    for needed in (ours, *cores):
        assert needed.specifier.contains(version_line[1], prereleases=True), str(needed)
    assert locked("gpu")["transformer-engine-cu13"] == version_line[1]


def test_image_is_checked() -> None:
    """What a CPU environment lacks is what the check of the image must tell."""
    told = run(sys.executable, "docker/check.py")
    assert told.returncode == 1
    lines = told.stderr.splitlines()
    for expected in (
        "error: nvidia-dali-cuda130 is not installed, but gpu.txt names 2.4.0",
        "error: megatron-core does without Transformer Engine, which it could not import",
    ):
        assert expected in lines
    assert any(re.match(r"error: torch 2\S+\+cpu is built for CUDA None", line) for line in lines)
    assert any("transformer_engine.pytorch does not load: Module" in line for line in lines)
    assert not any("megatron_longrl.train_rl does not load" in line for line in lines)


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
