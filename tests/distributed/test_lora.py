"""Adapters in every layout: loss, gradients and their norm, streams, checkpoints.

The expected gradients are the chain rule's, from the dense gradients of the one-process twins with
merged weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.conversion.hf import load_hf_weights
from megatron_longrl.conversion.mapping import (
    export_named_tensors,
    local_parameters,
    weight_stream,
)
from megatron_longrl.conversion.peft import adapters_of
from megatron_longrl.training.runtime import Runtime, build_runtime
from tests.distributed.adapters import (
    Pairs,
    adapter_parameters,
    drawn,
    expected_gradients,
    make_them_matter,
    whole_adapters,
)
from tests.distributed.cases import CP2, PP2, SP, TP2, TWO_RANKS
from tests.distributed.families import all_rollouts, run_config, twin_of
from tests.distributed.layouts import (
    TOLERANCE,
    cached_twin_of,
    largest_error,
    run_step,
    tiny_config,
)
from tests.distributed.runs import LAYOUTS, Run, assert_equal
from tests.runner.tiers import full_only

HERE = "tests/distributed/test_lora.py::"
PARTS = ("language_model", "projector", "vision_tower")
LORA: dict[str, Any] = {"lora_rank": 3, "lora_alpha": 5, "lora_parts": PARTS}


def started(config: Any, folder: Any = None) -> Runtime:
    runtime = build_runtime(config, "rl")
    if folder is not None:
        load_hf_weights(folder / "hf", runtime.model.modules, runtime.config, runtime.groups)
    make_them_matter(runtime.model.modules, runtime.config, runtime.groups)
    return runtime


def adapters(runtime: Runtime, **options: Any) -> Pairs:
    return whole_adapters(runtime.model.modules, runtime.config, runtime.groups, **options)


def gradients(runtime: Runtime) -> dict[str, torch.Tensor]:
    pairs = adapters(runtime, of=lambda parameter: parameter.main_grad)
    return {f"{name} {m}": g for name, p in pairs.items() for m, g in zip("AB", p, strict=True)}


def check(runtime: Runtime, twin: Any) -> None:
    """One step of a run whose gradients stay in the buffers."""
    config, held = runtime.config, adapters(runtime)
    loss, dense = twin(runtime)
    result = run_step(runtime)
    assert result.metrics["lm loss"] == pytest.approx(loss, rel=TOLERANCE, abs=1e-6)
    expected = expected_gradients(config, held, dense, 5 / 3)
    ours = gradients(runtime)
    assert set(ours) == set(expected)
    assert largest_error(ours, expected) <= TOLERANCE
    norm = sum(float(g.double().square().sum()) for g in expected.values()) ** 0.5
    assert result.grad_norm == pytest.approx(norm, rel=TOLERANCE)


# Far above every norm: it is computed, and nothing is clipped.
NORM = {"clip_grad": 1e9}


@pytest.mark.parametrize(
    "changes",
    full_only(
        f"{HERE}test_language_model_alone_with_everything_else_frozen",
        [
            pytest.param({}, id="kept"),
            pytest.param({"recompute_granularity": "full"}, id="recomputed"),
        ],
        ["kept"],
    ),
)
@pytest.mark.parametrize("layout", TWO_RANKS)
def test_loss_and_gradients(tiny_data, layout, changes):
    config = tiny_config(tiny_data, **TWO_RANKS[layout], **LORA, **NORM, **changes)
    check(started(config), cached_twin_of)


@pytest.mark.parametrize(
    "layout",
    full_only(
        f"{HERE}test_language_model_alone_with_everything_else_frozen",
        TWO_RANKS,
        ["TP2 with sequence parallelism", "PP2"],
    ),
)
def test_language_model_alone_with_everything_else_frozen(tiny_data, layout):
    """No embedding asks for a gradient, and layers are computed again."""
    frozen = {"freeze_projector": True, "freeze_vision_tower": True}
    options = {**LORA, **frozen, **NORM, "lora_parts": ("language_model",)}
    options["recompute_granularity"] = "full"
    check(started(tiny_config(tiny_data, **TWO_RANKS[layout], **options)), cached_twin_of)


def test_more_ranks_than_key_and_value_heads(tiny_data):
    """The adapter of the fused projection is split where its rows are."""
    check(
        started(tiny_config(tiny_data, **TP2, **SP, **LORA, **NORM, num_query_groups=1)),
        cached_twin_of,
    )


@pytest.mark.parametrize("targets", [("linear_qkv", "linear_fc2"), ("linear_proj", "linear_fc1")])
def test_some_layers_alone(tiny_data, targets):
    config = tiny_config(tiny_data, **TP2, **SP, **LORA, **NORM, lora_target_modules=targets)
    runtime = started(config)
    layers = {name.split(".")[-2] for name in adapters(runtime) if "decoder.layers" in name}
    assert layers == set(targets)
    check(runtime, cached_twin_of)


@pytest.mark.parametrize(
    "layout",
    full_only(
        f"{HERE}test_the_distributed_optimizer_clips_by_the_same_norm", TWO_RANKS, ["TP2", "PP2"]
    ),
)
def test_the_distributed_optimizer_clips_by_the_same_norm(tiny_data, layout):
    options = {**LORA, **NORM, "use_distributed_optimizer": True}
    runtime = started(tiny_config(tiny_data, **TWO_RANKS[layout], **options))
    _, dense = cached_twin_of(runtime)
    expected = expected_gradients(runtime.config, adapters(runtime), dense, 5 / 3)
    norm = sum(float(g.double().square().sum()) for g in expected.values()) ** 0.5
    assert run_step(runtime).grad_norm == pytest.approx(norm, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "layout"),
    full_only(
        f"{HERE}test_qwen_vl",
        [
            pytest.param(family, layout, id=f"{family}-{name}")
            for family in ("qwen2_5_vl", "qwen3_vl")
            for name, layout in (("TP2 SP", TP2 | SP), ("MR-SP2", CP2), ("PP2", PP2))
        ],
        ["qwen2_5_vl-MR-SP2", "qwen3_vl-TP2 SP", "qwen3_vl-PP2"],
    ),
)
def test_qwen_vl(family, layout, family_folder):
    folder = family_folder(family)
    check(started(run_config(folder, **layout, **LORA, **NORM), folder), partial(_twin, folder))


def _twin(folder: Any, runtime: Runtime) -> Any:
    stream = export_named_tensors(runtime.model.modules, runtime.config, runtime.groups)
    merged = {name: tensor.clone() for name, tensor in stream}
    return twin_of(folder, all_rollouts(runtime), runtime.config, merged)


# ---- Streams and checkpoints ----


class LoraRun(Run):
    """A model with adapters that matter."""

    def __init__(self, layout: str, **changes: object) -> None:
        super().__init__(layout, **{**LORA, **changes})
        make_them_matter(self.model.modules, self.config, self.groups)
        for optimizer in self.model.optimizers.values():
            optimizer.reload_model_params()

    def adapters(self) -> dict[str, torch.Tensor]:
        pairs = whole_adapters(self.model.modules, self.config, self.groups)
        return {f"{name} {m}": t for name, p in pairs.items() for m, t in zip("AB", p, strict=True)}

    def train_adapters(self, steps: int, seed: int) -> None:
        """Steps on gradients that depend on the seed and the names alone."""
        assert self.model.optimizer is not None and self.model.scheduler is not None
        for step in range(steps):
            for mapping, parameter in adapter_parameters(self.model.modules, self.config):
                gradient = drawn(mapping, parameter, self.groups, 1000 * seed + step)
                parameter.main_grad.copy_(gradient)  # type: ignore[attr-defined]
            self.model.optimizer.step()
            self.model.scheduler.step(increment=1)


@pytest.mark.parametrize(
    "layout",
    full_only(
        f"{HERE}test_initial_adapters_and_streams_are_the_same_on_every_layout",
        LAYOUTS,
        ["tp2 sp", "pp2", "tp2 tower"],
    ),
)
def test_initial_adapters_and_streams_are_the_same_on_every_layout(layout):
    base = Run("dp2").tensors()
    whole = LoraRun("dp2")
    expected = whole.adapters()
    run = LoraRun(layout)
    assert_equal(expected, run.adapters())
    before = {n: p.detach().clone() for n, p in local_parameters(run.model.modules).items()}
    stream = dict(weight_stream(run.model.modules, run.config, run.groups))
    # Each projection's weight plus its own product, written out.
    pairs = whole_adapters(run.model.modules, run.config, run.groups)
    by_name = adapters_of(run.config, lambda mapping: pairs.get(mapping.megatron_param))
    merged = 0
    for name, tensor in stream.items():
        theirs = base[f"llm/{name}"]
        if f"llm/{name}" in by_name:
            a, b = by_name[f"llm/{name}"]
            assert (tensor - theirs).abs().max() > 1e-3
            theirs = theirs + 5 / 3 * b @ a
            merged += 1
        torch.testing.assert_close(tensor, theirs, rtol=1e-5, atol=1e-6)
    assert merged == 2 * 7
    after = {n: p.detach() for n, p in local_parameters(run.model.modules).items()}
    assert_equal(before, after)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("tp2 sp", "pp2", {"bf16": True}),
        ("cp2", "tp2", {"use_distributed_optimizer": False}),
        ("pp2", "tp2", {"freeze_vision_tower": True, "lora_parts": PARTS[:2]}),
        *full_only(
            f"{HERE}test_a_run_goes_on_at_another_layout",
            [
                pytest.param("tp2", "tp2", {}),
                pytest.param("tp2", "dp2", {"bf16": True}),
                pytest.param("dp2", "tp2 sp", {}),
                pytest.param("pp2", "cp2", {}),
            ],
        ),
    ],
)
def test_a_run_goes_on_at_another_layout(before, after, changes, shared_path):
    run = LoraRun(before, **changes)
    run.train_adapters(2, seed=1)
    run.save(shared_path, 2)
    run.train_adapters(1, seed=2)
    expected, tensors = run.adapters(), run.tensors()

    resumed = LoraRun(after, seed=99, **changes)
    loaded = resumed.load(shared_path)
    assert loaded is not None and loaded.iteration == 2
    resumed.train_adapters(1, seed=2)
    assert_equal(expected, resumed.adapters())
    assert_equal(tensors, resumed.tensors())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("tp2 sp", "pp2"),
        *full_only(
            f"{HERE}test_weights_come_merged_at_another_layout", [pytest.param("pp2", "tp2")]
        ),
    ],
)
def test_weights_come_merged_at_another_layout(before, after, shared_path):
    run = LoraRun(before)
    run.save(shared_path, 1)
    other = Run(after, seed=9, **(LORA | {"lora_rank": 2}))
    load_weights(
        shared_path,
        modules=other.model.modules,
        optimizers=other.model.optimizers,
        groups=other.groups,
        config=other.config,
    )
    assert_equal(run.tensors(), other.tensors())


def test_gradients_of_adapters_alone_have_memory():
    run = LoraRun("tp2")
    modules: dict[str, Any] = dict(run.model.modules)
    for part, module in modules.items():
        held = {id(p) for buffer in module.buffers for p in buffer.param_index_map}
        found = adapter_parameters(run.model.modules, run.config)
        expected = {id(p) for mapping, p in found if mapping.megatron_param.startswith(part)}
        assert held == expected and held
