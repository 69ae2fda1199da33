"""A family with a second modality, brought from one folder outside the package: its encoder is
trained beside the vision tower, and the units of both are spread over the ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_longrl.observability.metrics_file import Metrics
from tests.extensions.modality.signal import SAMPLES_PER_UNIT
from tests.functional.catalogue import catalogue_entries, told_of
from tests.functional.clips import write_clip
from tests.functional.launches import (
    CP2,
    TP2,
    Arena,
    Outcome,
    curve,
    metrics_of,
    read_rows,
    run,
    write_rows,
)

PLUGIN = (
    *("--plugin", "tests.extensions.modality.vila_signal", "--model-family", "vila_signal"),
    *("--train-iters", "3", "--lr", "1e-2"),
)
SFT = ("--micro-batch-size", "4")
GRPO = (
    *("--rollout-engine", "megatron", "--rewards", "format", "--grpo-prompts-per-step", "4"),
    *("--grpo-group-size", "4", "--micro-batch-size", "4"),
)
SAMPLES = (37, 16, 70, 3)
"""Lengths of the signals; the second row has none, the third two."""


@pytest.fixture(scope="module")
def rows(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the arena, with signals of several lengths beside their videos."""
    folder, generator = tmp_path_factory.mktemp("signals"), np.random.default_rng(0)
    names = []
    for number, samples in enumerate(SAMPLES):
        names.append(f"{number}.npy")
        np.save(folder / names[-1], generator.standard_normal(samples).astype(np.float32))
    chosen = read_rows(arena.data("sft"))[:4]
    for row, signals in zip(chosen, (names[:1], [], names[1:3], names[3:]), strict=True):
        row["signals"] = signals
    chosen[2]["problem"] = f"<signal><video>{chosen[2]['problem']}<signal>"
    return write_rows(folder / "train.jsonl", chosen)


def train(
    arena: Arena, rows: Path, folder: Path, program: str, *flags: str, ranks: int = 2
) -> list[Metrics]:
    data = ("--train-data-path", rows, "--save", folder)
    arena.launch(program, *PLUGIN, *data, *flags, ranks=ranks).succeeded()
    return metrics_of(folder)


def test_both_encoders_are_trained_on_two_ranks_as_on_one(
    arena: Arena, rows: Path, tmp_path: Path
) -> None:
    one = train(arena, rows, tmp_path / "one", "train_sft", *SFT, ranks=1)
    units = sum(-(-samples // SAMPLES_PER_UNIT) for samples in SAMPLES)
    for name, layout in (("MR-SP2", CP2), ("TP2", TP2)):
        two = train(arena, rows, tmp_path / name, "train_sft", *SFT, *layout)
        for metric in ("lm loss", "grad-norm"):
            assert curve(two, metric) == pytest.approx(curve(one, metric), rel=2e-5), (name, metric)
        assert curve(two, "units_encoded/signal") == [units] * 3, "each once, by all ranks"
        assert curve(two, "frames_encoded") == curve(one, "frames_encoded")
    assert catalogue_entries(one[0]) >= told_of("sft", "models of a further modality")
    still = train(
        arena, rows, tmp_path / "still", "train_sft", *SFT, *CP2, "--freeze-signal-encoder"
    )
    assert curve(still, "units_encoded/signal") == [units, 0, 0], "kept, as it is frozen"
    assert curve(still, "frames_encoded") == curve(one, "frames_encoded")
    assert curve(still, "lm loss")[0] == pytest.approx(curve(one, "lm loss")[0], rel=2e-5)
    assert curve(still, "lm loss")[2] != pytest.approx(curve(one, "lm loss")[2], rel=2e-5)


def longrl(program: str, *arguments: str | Path) -> Outcome:
    """A program of one process."""
    return run(["-m", f"megatron_longrl.cli.{program}", *map(str, arguments)], 1, 120)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Of all parts of a Hugging Face folder."""
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_its_checkpoints_are_converted_bit_by_bit(arena: Arena, rows: Path, tmp_path: Path) -> None:
    """From a run to a Hugging Face folder, to a run that does not learn, and back."""
    train(arena, rows, tmp_path / "run", "train_sft", *SFT, ranks=1)
    plugin = PLUGIN[:2]
    folders: list[Path] = []
    back = ("convert", *plugin, "--loader", "megatron", "--saver", "hf", "--verify")
    for source in ("run", "still"):
        if source == "still":
            start = ("--pretrained-checkpoint", folders[0])
            data = ("--train-data-path", rows, "--save", tmp_path / source)
            still = (*plugin, *data, *start, *SFT, "--train-iters", "1", "--lr", "0")
            arena.launch("train_sft", *still, ranks=2).succeeded()
        folders.append(tmp_path / f"{source}_hf")
        whence = ("--load-dir", tmp_path / source, "--save-dir", folders[-1])
        longrl(*back, *whence).succeeded()
    first, again = map(tensors, folders)
    assert {name.partition("/")[0] for name in first} == {
        *("llm", "vision_tower", "mm_projector", "signal_encoder")
    }
    assert list(first) == list(again)
    assert all(torch.equal(first[name], again[name]) for name in first)
    settings = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert settings[0] == settings[1] and settings[0]["model_type"] == "vila_signal"
    there = ("convert", *plugin, "--loader", "hf", "--saver", "megatron", "--verify")
    longrl(*there, "--load-dir", folders[0], "--save-dir", tmp_path / "released").succeeded()
    sides = ("--hf-dir", folders[0], "--megatron-dir", tmp_path / "released")
    write_clip(tmp_path / "clip.mp4", channel=0, frames=8)
    seen = ("--video", tmp_path / "clip.mp4", "--video-frames", "4")
    longrl("verify", *plugin, *sides, *seen).succeeded()
    for folder in (folders[0], tmp_path / "released"):
        assert "signal_hidden_size: 8" in longrl("inspect", folder, *plugin).succeeded().output


def test_its_folder_is_unknown_without_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vila_signal"}')
    (told,) = longrl("inspect", tmp_path).errors
    assert "model_type vila_signal" in told and "vila_signal" not in told.partition("only")[2]
    (told,) = longrl("inspect", tmp_path, "--plugin", "no_such_module").errors
    assert told.startswith("error: --plugin no_such_module cannot be imported: no such module")


def test_reinforcement_learning(arena: Arena, rows: Path, tmp_path: Path) -> None:
    steps = train(arena, rows, tmp_path, "train_rl", *GRPO, *CP2)
    assert len(steps) == 3 and curve(steps, "skipped_updates") == [0, 0, 0]
    assert min(curve(steps, "units_encoded/signal")) > 0
    assert catalogue_entries(steps[0]) >= told_of("rl", "models of a further modality")
    record = next((tmp_path / "rollouts").glob("step_*.jsonl")).read_text().splitlines()[1]
    assert {"frames", "units"} & set(json.loads(record)["media"][0])
