"""Two ranks: exports, imports and checkpoints do not depend on the parallel layout.

The weights after an optimizer step on given gradients are the same on every layout, bit for bit:
initial weights are drawn by name, and Adam works element by element.
"""

from __future__ import annotations

import logging

import pytest
import torch.distributed as dist

from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.conversion.hf import load_hf_weights
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.errors import UserError
from tests.distributed.runs import Run, assert_equal
from tests.runner.tiers import full_only

SAVING = "megatron_longrl.checkpoint.saving"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bf16": True, "untie_embeddings_and_output_weights": True},
        # More ranks than key and value heads.
        {"num_query_groups": 1},
    ],
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
        ("dp2", "tp2 sp", {"bf16": True}),
        ("tp2 sp", "cp2", {"untie_embeddings_and_output_weights": True}),
        ("cp2", "pp2", {"bf16": True}),
        ("tp2", "pp2", {"use_distributed_optimizer": False}),
        ("pp2", "tp2", {"freeze_vision_tower": True}),
        ("tp2 tower", "dp2", {}),
        ("tp2 sp", "pp2", {"num_query_groups": 1}),
        ("dp2", "tp2", {"num_query_groups": 1}),
        *full_only(
            "tests/distributed/test_checkpoint.py::test_a_run_goes_on_at_another_layout",
            [
                pytest.param("pp2", "pp2", {"bf16": True}),
                pytest.param("dp2", "dp2", {"bf16": True}),
                pytest.param("tp2", "pp2", {}),
                pytest.param("pp2", "dp2", {"untie_embeddings_and_output_weights": True}),
                pytest.param("tp2 tower", "tp2 tower", {"bf16": True}),
                pytest.param("dp2", "tp2 tower", {}),
                pytest.param("tp2", "tp2 tower", {"use_distributed_optimizer": False}),
            ],
        ),
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
    is_told = places[0] != places[1] and dist.get_rank() == 0
    assert ("random states are not restored" in caplog.text) is is_told
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
