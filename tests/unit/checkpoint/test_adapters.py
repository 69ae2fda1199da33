"""Checkpoints with adapters and models without, and the other way round, on one rank."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_longrl.checkpoint.loading import load_checkpoint, load_weights
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.mapping import export_named_tensors, local_adapters, weight_stream
from megatron_longrl.errors import UserError

PARTS = ("language_model", "projector", "vision_tower")


@pytest.fixture
def tensors(groups):
    """The whole model under Hugging Face names."""

    def export(model, config):
        stream = export_named_tensors(model.modules, config, groups)
        return {name: tensor.clone() for name, tensor in stream}

    return export


@pytest.fixture
def trained(build):
    """A model whose adapters do something."""

    def make(config):
        model = build(config)
        torch.manual_seed(4)
        for adapter in local_adapters(model.modules).values():
            torch.nn.init.normal_(adapter.B, std=0.2)
        return model

    return make


@pytest.fixture
def save(groups, tmp_path):
    def run(model, config):
        return save_checkpoint(
            tmp_path / "run",
            1,
            modules=model.modules,
            optimizers=model.optimizers,
            scheduler=model.scheduler,
            state={},
            groups=groups,
            config=config,
        )

    return run


@pytest.fixture
def start(groups, tmp_path, build):
    """A new stage from the saved weights, or from another folder."""

    def run(config, folder=None, train=True):
        model = build(config, train)
        load_weights(
            folder or tmp_path / "run",
            modules=model.modules,
            optimizers=model.optimizers,
            groups=groups,
            config=config,
        )
        return model

    return run


def assert_equal(one, other):
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_the_stream_is_merged_and_touches_nothing(tiny, trained, groups, tensors, build):
    config = tiny(lora_rank=3, lora_parts=PARTS)
    model = trained(config)
    before = {n: p.clone() for m in model.modules.values() for n, p in m.named_parameters()}
    stream = dict(weight_stream(model.modules, config, groups))
    own = tensors(build(config.replace(lora_rank=0)), config)
    name = "model.layers.1.self_attn.k_proj.weight"
    layer = model.policy.module.decoder.layers[1].self_attention.linear_qkv
    # Two groups of two query heads, a key head and a value head, eight channels each.
    rows = torch.cat([torch.arange(16, 24), torch.arange(48, 56)])
    expected = own[f"llm/{name}"] + layer.lora.scale * layer.lora.B[rows] @ layer.lora.A
    torch.testing.assert_close(stream[name], expected, rtol=1e-5, atol=1e-6)
    assert (stream[name] - own[f"llm/{name}"]).abs().max() > 0.01
    after = {n: p for m in model.modules.values() for n, p in m.named_parameters()}
    assert_equal(before, after)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("train", [True, False])
def test_weights_come_merged_into_a_model_without_adapters(
    train, bf16, tiny, trained, save, start, tensors
):
    config = tiny(lora_rank=3, lora_parts=PARTS, bf16=bf16, lora_use_rslora=True, lora_alpha=5)
    model = trained(config)
    save(model, config)
    plain = config.replace(lora_rank=0, seed=8)
    other = start(plain, train=train)
    assert_equal(tensors(model, config), tensors(other, plain))


def test_evaluation_with_the_recipe_of_the_training(tiny, trained, save, start, tensors):
    """Its model has no adapters, whatever the recipe says of some."""
    config = tiny(lora_rank=3)
    model = trained(config)
    save(model, config)
    assert_equal(tensors(model, config), tensors(start(config, train=False), config))


def test_a_stage_with_other_adapters_starts_from_the_merged_weights(
    tiny, trained, save, start, tensors
):
    config = tiny(lora_rank=3, lora_parts=("projector", "language_model"))
    model = trained(config)
    save(model, config)
    other = config.replace(lora_rank=2, lora_parts=("language_model",), seed=8)
    new = start(other)
    for adapter in local_adapters(new.modules).values():
        assert adapter.A.shape[0] == 2 and adapter.A.any() and not adapter.B.any()
    assert_equal(tensors(model, config), tensors(new, other))


def test_a_stage_with_adapters_starts_from_full_weights(tiny, build, save, start, tensors):
    config = tiny()
    model = build(config)
    save(model, config)
    other = config.replace(lora_rank=2, lora_parts=PARTS, seed=8)
    new = start(other)
    assert_equal(tensors(model, config), tensors(new, other))
    # Nor does the optimizer bring back what was there before.
    new.optimizer.step()
    assert_equal(tensors(model, config), tensors(new, other))


def test_a_stage_with_adapters_starts_from_a_hugging_face_folder(
    tiny, build, start, tensors, tmp_path
):
    config = tiny()
    expected = tensors(build(config), config)
    with HfFolderWriter(tmp_path / "hf", config) as writer:
        for name, tensor in expected.items():
            writer.add(name, tensor)
    other = config.replace(lora_rank=2, lora_parts=PARTS, seed=8)
    assert_equal(expected, tensors(start(other, tmp_path / "hf"), other))


@pytest.mark.parametrize(
    ("saved", "ours", "line"),
    [
        ({"lora_rank": 3}, {}, "lora_rank 3 there, 0 in the configuration; lora_alpha 6.0 there"),
        ({}, {"lora_rank": 3}, "lora_rank 0 there, 3 in the configuration"),
        (
            {"lora_rank": 3},
            {"lora_rank": 3, "lora_parts": PARTS},
            r"lora_parts \['language_model'\] there, \['language_model', 'projector', 'v",
        ),
    ],
)
def test_a_run_goes_on_with_the_same_adapters_only(
    saved, ours, line, tiny, build, save, groups, tmp_path
):
    save(build(tiny(**saved)), tiny(**saved))
    config = tiny(**ours)
    model = build(config)
    with pytest.raises(UserError, match=f"trained with other adapters: {line}"):
        load_checkpoint(
            tmp_path / "run",
            modules=model.modules,
            optimizers=model.optimizers,
            scheduler=model.scheduler,
            groups=groups,
            config=config,
            checkpoint=config.checkpoint,
        )


def test_checkpoints_from_before_there_were_adapters(tiny, trained, save, start, tensors):
    config = tiny()
    model = trained(config)
    state_file = save(model, config) / "longrl_state.json"
    state = json.loads(state_file.read_text())
    state["config"] = {n: v for n, v in state["config"].items() if not n.startswith("lora_")}
    state_file.write_text(json.dumps(state))
    assert_equal(tensors(model, config), tensors(start(config.replace(seed=8)), config))
