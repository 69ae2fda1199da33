"""What is imported where: pure parts, flags and their errors wait neither for torch nor for vLLM.

torch takes two seconds to import and megatron-core two more, which every tool, every process of a
run and every test alone would pay. What is imported stays, so another process imports everything in
stages, the lightest first, and notes what each import brings along.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "megatron_longrl"

TORCH = ("torch", "nvidia.dali")
MODELS = ("megatron.core", "transformers", "vllm")
MEDIA = ("numpy", "av", "PIL", "sentencepiece", "safetensors", "matplotlib")
FORBIDDEN = {
    "entry points": (*TORCH, *MODELS, *MEDIA),
    "bare modules": (*TORCH, *MODELS, *MEDIA),
    "tools": (*TORCH, *MODELS),
    "plain modules": (*TORCH, *MODELS),
    "plain tests": (*TORCH, *MODELS),
    "tensors": ("nvidia.dali", *MODELS),
}
"""By stage, in their order."""

# ---- The package: packages, and modules where only some of a package are meant ----

PLAIN = {
    *("cli.score", "config", "data", "planner", "processes", "rewards"),
    *("atomic_file", "atomic_folder", "errors", "evaluate", "generate", "train_rl", "train_sft"),
    *("cli.convert", "cli.inspect", "cli.launch", "cli.load", "cli.rules", "cli.verify"),
    *("cli.conversion.find", "cli.conversion.process"),
    *("checkpoint.architecture", "checkpoint.folder", "checkpoint.retention"),
    "experience.sampling_settings",
    "media",
    *("models.family", "models.hf_processors", "models.hf_settings", "models.sizes"),
    *("models.qwen_vl.sizes", "models.text.kinds"),
    *("models.vila.config", "models.vila.projector_kinds", "models.vila.tiles"),
    "observability",
    *("rollout.partition", "rollout.server.child", "rollout.vllm.fit", "serve"),
    *("benchmark.data", "benchmark.report", "benchmark.variants"),
}
"""Imports no torch."""

WITH_TENSORS = {
    *("data.collate", "data.dataset", "data.prompts"),
    *("media.disk_cache", "media.embedding_store", "media.encoder", "media.layout"),
    *(
        "media.load_together",
        "media.loader",
        "media.provider",
        "media.watched_thread",
        "media.modalities.image.decode",
    ),
    "media.modalities.audio.features",
    *("media.modalities.video.decode", "media.modalities.video.dali"),
    *("media.modalities.visual.full_frames", "media.modalities.visual.layout"),
    "media.modalities.visual.resize",
    *("rewards.runner", "rewards.totals"),
}
"""Of the plain packages what deals with tensors or speaks to other ranks."""

WITH_MEDIA = {"benchmark", "data", "media", "planner.stages"}
"""Of what is plain, what may import NumPy and the libraries that read files."""

WITHOUT_MODELS = {
    *("algorithms", "data", "experience", "media", "parallel", "planner", "platforms", "rewards"),
    *("rollout", "rl.advantages", "rl.reward_shaping", "rl.mismatch", "evaluation.summary"),
    *("training.batches", "training.differences", "training.losses", "training.hardware"),
    *("training.sharding", "training.token_values"),
    *("models.llama", "models.qwen2", "models.qwen3", "models.text"),
    *("models.qwen2_5_omni.layout", "models.qwen2_5_omni.mapping"),
    *("models.qwen_vl.grid", "models.qwen_vl.layout", "models.qwen_vl.mapping"),
    *("models.qwen_vl.merger", "models.rotary", "models.swiglu"),
    *("models.vila.unused_layers", "models.vila.layout", "models.vila.mapping"),
    *("models.vila.picture_settings", "models.vila.projector", "models.vila.scales"),
    "models.param_mapping",
}
"""May import torch, but neither megatron-core nor vLLM nor transformers."""

WITH_MODELS = {
    *("parallel.attention.all_to_all", "parallel.attention.module", "parallel.groups"),
    *("rollout.megatron_engine", "rollout.server.engine", "rollout.vllm.engine"),
    # Parts of vLLM's own processes.
    *("rollout.vllm.stop", "rollout.vllm.weight_transfer", "rollout.vllm.worker"),
}
"""Of those packages what meets them."""

# ---- Tests, and programs by their command lines ----

PLAIN_TESTS = (
    *("config/test_*.py", "observability/test_*.py", "planner/test_*.py", "rewards/test_*.py"),
    *("cli/test_given.py", "cli/test_installed.py", "cli/test_rules.py", "data/test_answer.py"),
    *("checkpoint/test_retention.py", "data/test_cups.py", "data/test_rows.py", "test_*.py"),
    *("media/test_content_hash.py", "media/test_partition.py", "rollout/vllm/test_fit.py"),
    *("rollout/test_partition.py", "tools/test_reference.py"),
)
TENSOR_TESTS = {
    *("planner/test_cost.py", "rewards/test_function_tensors.py", "rewards/test_runner.py"),
}

ENTRIES = ("train_rl", "train_sft", "evaluate", "generate", "serve")
RECIPE = ("--config", str(ROOT / "examples/quickstart/grpo.yaml"))
DATA = ("--train-data-path", "d", "--valid-data-path", "d", "--tokenizer-model", "t")
ENTRY_POINTS = (
    *((f"-m {PACKAGE}.{entry}", "--help") for entry in ENTRIES),
    (f"-m {PACKAGE}.train_rl", *RECIPE, *DATA, "--print-config"),
    (f"-m {PACKAGE}.train_rl", "--num-atention-heads", "4"),
    (f"-m {PACKAGE}.train_rl",),
    (f"-m {PACKAGE}.cli.score", "--help"),
    (f"-m {PACKAGE}.cli.score", "none.jsonl", "none.jsonl"),
)
TOOLS = (
    *(
        (str(path.relative_to(ROOT)), "--help")
        for folder in ("tools", "tools/checkpoint")
        for path in sorted((ROOT / folder).glob("*.py"))
        if '\nif __name__ == "__main__":\n' in path.read_text()
    ),
    ("tools/checkpoint/convert.py", "--loader", "hf", "--saver", "hg"),
    ("-m tools.reference", "--help"),
    *((f"-m {PACKAGE}.cli.{name}", "--help") for name in ("convert", "inspect", "verify")),
)


def modules(chosen: set[str], without: set[str]) -> list[str]:
    """Of the package, those that are named in a set, or whose packages are."""

    def is_in(name: str, names: set[str]) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:length]) in names for length in range(1, len(parts) + 1))

    paths = (path.relative_to(ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py"))
    names = (".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths)
    found = set(names)
    for wanted in chosen | without:
        assert any(is_in(name, {wanted}) for name in found), f"{wanted} is no module"
    return sorted(name for name in found if is_in(name, chosen) and not is_in(name, without))


# ---- In the other process ----


class Notes:
    """What each import has brought along; also a plugin of pytest, told of each collected file."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, list[str]]] = []
        self._known: set[str] = set()

    def note(self, stage: str, what: str) -> None:
        """``what`` has just been imported."""
        brought = sorted({*TORCH, *MODELS, *MEDIA} & sys.modules.keys() - self._known)
        self._known.update(brought)
        self.found.append((stage, what, brought))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note("plain tests", report.nodeid or "a conftest.py, or pytest itself")

    def imports(self, stage: str, names: Sequence[str]) -> None:
        for name in names:
            importlib.import_module(f"{PACKAGE}.{name}")
            self.note(stage, name)

    def programs(self, stage: str, commands: Sequence[tuple[str, ...]]) -> None:
        for program, *arguments in commands:
            run = runpy.run_module if program.startswith("-m ") else runpy.run_path
            sys.argv = [program.removeprefix("-m "), *arguments]
            with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                run(sys.argv[0], run_name="__main__")
            self.note(stage, " ".join((program, *arguments)))

    def tests(self) -> None:
        folder = ROOT / "tests" / "unit"
        left_out = {folder / name for name in TENSOR_TESTS}
        matched = {pattern: set(folder.glob(pattern)) for pattern in PLAIN_TESTS}
        assert all(matched.values()), "a pattern matches no file"
        files = set().union(*matched.values()) - left_out
        options = ["--collect-only", "-q", "-p", "no:cacheprovider"]
        status = pytest.main([*options, *map(str, sorted(files))], plugins=[self])
        assert status == pytest.ExitCode.OK, "the tests cannot be collected"


def report() -> None:
    """Print what was found."""
    sys.path.insert(0, str(ROOT))
    notes = Notes()
    with contextlib.redirect_stdout(io.StringIO()):
        notes.programs("entry points", ENTRY_POINTS)
        notes.imports("bare modules", modules(PLAIN, WITH_TENSORS | WITH_MEDIA))
        notes.programs("tools", TOOLS)
        notes.imports("plain modules", modules(PLAIN, WITH_TENSORS))
        notes.tests()
        notes.imports("tensors", modules(WITHOUT_MODELS, WITH_MODELS))
    print(json.dumps(notes.found))


# ---- Here ----


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str, list[str]]]:
    result = subprocess.run(
        [sys.executable, "-c", "from tests.unit import test_imports; test_imports.report()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
    )
    assert result.returncode == 0, result.stderr
    return [(stage, what, brought) for stage, what, brought in json.loads(result.stdout)]


@pytest.mark.parametrize("stage", FORBIDDEN)
def test_nothing_heavy_comes_along(found, stage):
    here = {what: brought for at, what, brought in found if at == stage}
    assert here, "something is looked at"
    wrong = {what: [name for name in here[what] if name in FORBIDDEN[stage]] for what in here}
    assert {what: names for what, names in wrong.items() if names} == {}
