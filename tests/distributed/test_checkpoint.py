"""Two ranks: exports, imports and checkpoints do not depend on the parallel layout.

The weights after an optimizer step on given gradients are the same on every layout, bit for bit:
initial weights are drawn by name, and Adam works element by element.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_longrl.checkpoint.distributed import load_checkpoint, load_weights, save_checkpoint
from megatron_longrl.checkpoint.hf import load_hf_weights
from megatron_longrl.checkpoint.hf_writer import HfFolderWriter
from megatron_longrl.checkpoint.mapping import (
    export_named_tensors,
    local_parameters,
    mapping_table,
)
from megatron_longrl.config import Config
from megatron_longrl.errors import UserError
from megatron_longrl.parallel.groups import init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model

TINY = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 70,  # padded to 72, or to 80 with TP 2
    "make_vocab_size_divisible_by": 8,
    "max_position_embeddings": 256,
    "vision_image_size": 28,
    "vision_patch_size": 7,
    "vision_hidden_size": 16,
    "vision_num_layers": 3,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 24,
    "seq_length": 128,
    "train_iters": 10,
    "lr": 1e-3,
    # The norm that clips is summed in another order on another layout.
    "clip_grad": 0.0,
}

SAVING = "megatron_longrl.checkpoint.distributed"

LAYOUTS: dict[str, dict[str, object]] = {
    "dp2": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2 sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "tp2 tower": {"tensor_model_parallel_size": 2, "vision_tensor_parallel": True},
}


class Run:
    """A model on one layout."""

    def __init__(self, layout: str, **changes: object) -> None:
        platform.prepare()
        self.config = Config(**{**TINY, **LAYOUTS[layout], **changes})  # type: ignore[arg-type]
        self.groups = init_parallel(self.config)
        self.model = build_model(self.config, self.groups)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole model under Hugging Face names, as this rank sees it."""
        stream = export_named_tensors(self.model.modules, self.config, self.groups)
        return {name: tensor.clone() for name, tensor in stream}

    def train(self, steps: int, seed: int) -> None:
        """Steps on gradients that depend on the seed and the tensors' names alone."""
        local = local_parameters(self.model.modules)
        tp = self.groups.tp
        assert self.model.optimizer is not None and self.model.scheduler is not None
        for _ in range(steps):
            generator = torch.Generator().manual_seed(seed)
            shapes = {name: tensor.shape for name, tensor in self.tensors().items()}
            noise = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
            for row in mapping_table(self.config).expand():
                parameter = local.get(row.megatron)
                if parameter is None or not parameter.requires_grad:
                    continue
                size, rank = (1, 0) if row.replicated else (tp.size(), tp.rank())
                full = row.merge([noise[name] for name in row.hf])
                parameter.main_grad.copy_(row.shard(full, rank, size))  # type: ignore[attr-defined]
            self.model.optimizer.step()
            self.model.scheduler.step(increment=1)

    def save(self, folder: Path, iteration: int) -> Path:
        return save_checkpoint(
            folder,
            iteration,
            modules=self.model.modules,
            optimizers=self.model.optimizers,
            scheduler=self.model.scheduler,
            state={"consumed_samples": iteration},
            groups=self.groups,
            config=self.config,
        )

    def load(self, folder: Path):
        return load_checkpoint(
            folder,
            modules=self.model.modules,
            optimizers=self.model.optimizers,
            scheduler=self.model.scheduler,
            groups=self.groups,
            config=self.config,
        )


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    "changes", [{}, {"bf16": True, "untie_embeddings_and_output_weights": True}]
)
@pytest.mark.parametrize("layout", ["tp2", "pp2", "cp2", "tp2 tower"])
def test_exports_are_the_same_on_every_layout(layout, changes):
    expected = Run("dp2", **changes).tensors()
    assert_equal(expected, Run(layout, **changes).tensors())


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("layout", ["tp2", "pp2", "tp2 tower"])
def test_import_on_every_layout(layout, tie, shared_path):
    source = Run("dp2", seed=3, untie_embeddings_and_output_weights=not tie)
    expected = source.tensors()
    if dist.get_rank() == 0:
        with HfFolderWriter(shared_path / "hf", source.config) as writer:
            for name, tensor in expected.items():
                writer.add(name, tensor)
    dist.barrier()
    run = Run(layout, untie_embeddings_and_output_weights=not tie)
    load_hf_weights(shared_path / "hf", run.model.modules, run.config, run.groups)
    assert_equal(expected, run.tensors())


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("tp2", "tp2", {}),
        ("pp2", "pp2", {"bf16": True}),
        ("dp2", "dp2", {"bf16": True}),
        ("tp2", "pp2", {}),
        ("pp2", "dp2", {"untie_embeddings_and_output_weights": True}),
        ("dp2", "tp2 sp", {"bf16": True}),
        ("tp2 sp", "cp2", {"untie_embeddings_and_output_weights": True}),
        ("cp2", "pp2", {"bf16": True}),
        ("tp2", "pp2", {"use_distributed_optimizer": False}),
        ("pp2", "tp2", {"freeze_vision_tower": True}),
        ("tp2 tower", "tp2 tower", {"bf16": True}),
        ("tp2 tower", "dp2", {}),
        ("dp2", "tp2 tower", {}),
        ("tp2", "tp2 tower", {"use_distributed_optimizer": False}),
    ],
)
def test_a_run_goes_on_at_another_layout(before, after, changes, shared_path, caplog):
    run = Run(before, **changes)
    run.train(2, seed=1)
    run.save(shared_path, 2)
    run.train(1, seed=2)
    expected = run.tensors()

    resumed = Run(after, seed=99, **changes)
    with caplog.at_level(logging.WARNING):
        loaded = resumed.load(shared_path)
    assert loaded is not None and loaded.iteration == 2
    places = [name.removesuffix(" tower") for name in (before, after)]  # of ranks
    assert ("random states are not restored" in caplog.text) is (places[0] != places[1])
    resumed.train(1, seed=2)
    assert_equal(expected, resumed.tensors())


def test_weights_alone_at_another_layout(shared_path):
    run = Run("pp2", seed=5)
    run.save(shared_path, 1)
    other = Run("tp2")
    load_weights(
        shared_path,
        modules=other.model.modules,
        optimizers=other.model.optimizers,
        groups=other.groups,
        config=other.config,
    )
    assert_equal(run.tensors(), other.tensors())


def test_another_architecture_is_refused_on_all_ranks(shared_path):
    Run("tp2").save(shared_path, 1)
    other = Run("pp2", hidden_size=64)
    before = other.tensors()
    with pytest.raises(UserError, match="hidden_size 32 there, 64 in the configuration"):
        other.load(shared_path)
    assert_equal(before, other.tensors())


def test_a_tensor_missing_on_one_stage_is_named_on_all_ranks(shared_path):
    run = Run("pp2")
    tensors = run.tensors()
    if dist.get_rank() == 0:
        with HfFolderWriter(shared_path / "hf", run.config) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
        from safetensors.torch import load_file, save_file

        path = shared_path / "hf/llm/model.safetensors"
        contents = load_file(path)
        del contents["model.layers.1.mlp.up_proj.weight"]  # the second stage's
        save_file(contents, path)
    dist.barrier()
    with pytest.raises(UserError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load_hf_weights(shared_path / "hf", run.model.modules, run.config, run.groups)


def test_a_file_lost_on_one_rank_is_learned_by_all(shared_path):
    run = Run("tp2")
    run.train(1, seed=1)
    run.save(shared_path, 1)
    expected = run.tensors()
    run.train(1, seed=2)
    newest = run.save(shared_path, 2)
    if dist.get_rank() == 1:
        next(newest.glob("__1_*.distcp")).unlink()
    dist.barrier()
    resumed = Run("pp2")
    loaded = resumed.load(shared_path)
    assert loaded is not None and loaded.iteration == 1
    assert_equal(expected, resumed.tensors())


@pytest.mark.parametrize("where", ["in core's writer", "in our files"])
def test_a_save_that_fails_on_one_rank_is_an_error_on_all(where, shared_path, monkeypatch):
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    run = Run("tp2")
    run.save(shared_path, 1)
    if dist.get_rank() == 1:
        core = where == "in core's writer"
        monkeypatch.setattr("os.fsync" if core else f"{SAVING}.save_rng_state", full)
    with pytest.raises(UserError, match="No space left on device"):
        run.save(shared_path, 2)
    assert (shared_path / "latest_checkpointed_iteration.txt").read_text() == "1\n"
    assert not (shared_path / "iter_0000002").exists()
    monkeypatch.undo()
    assert run.save(shared_path, 2).exists()
