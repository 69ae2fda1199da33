"""Checkpoints of a run on one rank: exact resume, fallback, refusals."""

from __future__ import annotations

import json
import random
import resource

import numpy as np
import pytest
import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.loading import load_checkpoint, load_weights
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.errors import UserError

LORA = {"lora_rank": 3, "lora_parts": ("language_model", "projector", "vision_tower")}


def train(model, steps, seed):
    """Optimizer steps on gradients that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for module in model.modules.values():
            module.zero_grad_buffer()
            for parameter in module.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.main_grad.copy_(noise)
        model.optimizer.step()
        model.scheduler.step(increment=1)


def snapshot(model):
    """Everything that a run goes on from."""
    state = {
        f"{part}.{name}": parameter.detach().clone()
        for part, module in model.modules.items()
        for name, parameter in module.named_parameters()
    }
    for part, chain in model.optimizers.items():
        for member in getattr(chain, "chained_optimizers", [chain]):
            for index, values in enumerate(member.optimizer.state.values()):
                for key, value in values.items():
                    state[f"{part}.optimizer.{index}.{key}"] = value.detach().clone()
            for index, group in enumerate(member.optimizer.param_groups):
                state[f"{part}.lr.{index}"] = torch.tensor(group["lr"])
    return state


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture
def save(groups, tmp_path):
    def run(model, config, iteration, **state):
        return save_checkpoint(
            tmp_path,
            iteration,
            modules=model.modules,
            optimizers=model.optimizers,
            scheduler=model.scheduler,
            state=state,
            groups=groups,
            config=config,
        )

    return run


@pytest.fixture
def load(groups, tmp_path):
    def run(model, config):
        return load_checkpoint(
            tmp_path,
            modules=model.modules,
            optimizers=model.optimizers,
            scheduler=model.scheduler,
            groups=groups,
            config=config,
            checkpoint=config.checkpoint,
        )

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bf16": True},
        {"use_distributed_optimizer": False},
        {"bf16": True, "use_distributed_optimizer": False},
        {"freeze_vision_tower": True, "untie_embeddings_and_output_weights": True},
        {"freeze_language_model": True},
        LORA,
        LORA | {"bf16": True, "use_distributed_optimizer": False, "lora_use_rslora": True},
    ],
)
def test_a_resumed_run_is_bit_exact(changes, tiny, build, save, load):
    config = tiny(**changes)
    model = build(config)
    train(model, 3, seed=1)
    save(model, config, 3, consumed_samples=24, kl=0.1)
    train(model, 3, seed=2)

    resumed = build(config.replace(seed=99))
    loaded = load(resumed, config)
    assert (loaded.iteration, loaded.state) == (3, {"consumed_samples": 24, "kl": 0.1})
    train(resumed, 3, seed=2)
    assert_equal(snapshot(model), snapshot(resumed))


def test_saving_before_the_first_step(tiny, build, save, load):
    config = tiny()
    model = build(config)
    save(model, config, 0)
    train(model, 2, seed=3)
    resumed = build(config)
    load(resumed, config)
    train(resumed, 2, seed=3)
    assert_equal(snapshot(model), snapshot(resumed))


def test_random_states_go_on(tiny, build, save, load):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2).tolist()

    config = tiny()
    model = build(config)
    random.gauss(0, 1)  # leaves a second number behind
    save(model, config, 1)
    expected = draw()
    assert draw() != expected
    load(model, config)
    assert draw() == expected
    load(model, config.replace(no_load_rng=True))
    assert draw() != expected


def test_the_configuration_rules_the_learning_rate(tiny, build, save, load):
    config = tiny(lr_decay_style="constant")
    model = build(config)
    train(model, 2, seed=1)
    save(model, config, 2)
    changed = config.replace(lr=5e-4)
    resumed = build(changed)
    load(resumed, changed)
    assert {group["lr"] for group in resumed.optimizer.param_groups} == {5e-4}


def test_weights_alone_start_a_new_stage(tiny, groups, build, save, tmp_path):
    config = tiny(bf16=True)
    model = build(config)
    train(model, 2, seed=1)
    save(model, config, 2)
    fresh = build(config.replace(seed=5))
    loaded = load_weights(
        tmp_path,
        modules=fresh.modules,
        optimizers=fresh.optimizers,
        groups=groups,
        config=config,
    )
    assert loaded.folder == tmp_path / "iter_0000002" and loaded.iteration == 0
    for part, module in model.modules.items():
        for name, value in module.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, fresh.modules[part].state_dict()[name])
    # The fp32 copies follow, or the first step would bring the old weights back.
    before = fresh.policy.module.decoder.final_layernorm.weight.detach().clone()
    for group in fresh.optimizer.param_groups:
        group["lr"] = 0.0
    fresh.optimizer.step()
    assert torch.equal(before, fresh.policy.module.decoder.final_layernorm.weight)


def keep_empty_tensors(decoder):
    """Of a language model's linear layers and final norm, as Transformer Engine's modules do."""
    for module in decoder.modules():
        if isinstance(module, (ColumnParallelLinear, RowParallelLinear)):
            keep_an_empty_tensor(module)
    keep_an_empty_tensor(decoder.final_layernorm)


def keep_an_empty_tensor(module):
    extra = {
        "get_extra_state": lambda self: torch.empty(0, dtype=torch.uint8),
        "set_extra_state": lambda self, state: None,
    }
    module.__class__ = type("Keeping", (type(module),), extra)


def test_what_transformer_engine_keeps_for_fp8_is_never_read(tiny, build, save, load):
    config = tiny()
    model = build(config)
    train(model, 2, seed=1)
    save(model, config, 2)
    resumed = build(config.replace(seed=9))
    keep_empty_tensors(resumed.policy.module.decoder)
    assert load(resumed, config).iteration == 2
    assert_equal(snapshot(model), snapshot(resumed))
    # And back.
    train(resumed, 1, seed=2)
    save(resumed, config, 3)
    again = build(config.replace(seed=9))
    assert load(again, config).iteration == 3
    assert_equal(snapshot(resumed), snapshot(again))


def test_weights_of_a_hugging_face_folder(tiny, groups, build, vila_folder, tmp_path):
    source = vila_folder()
    config = tiny()
    model = build(config)
    load_weights(
        source, modules=model.modules, optimizers=model.optimizers, groups=groups, config=config
    )
    folder = save_checkpoint(
        tmp_path / "run",
        1,
        modules=model.modules,
        optimizers={},
        scheduler=None,
        state={},
        groups=groups,
        config=config,
        carry_from=source,
    )
    assert (folder / layout.UNUSED_WEIGHTS).exists()
    with pytest.raises(UserError, match="vision_ffn_hidden_size 24 there, 32 in the configuration"):
        other = tiny(vision_ffn_hidden_size=32)
        load_weights(source, modules={}, optimizers={}, groups=groups, config=other)


def test_the_tokenizer_travels_with_the_checkpoint(tiny, build, save, tmp_path):
    tokenizer = tmp_path / "words.model"
    tokenizer.write_bytes(b"pieces")
    config = tiny(tokenizer_model=str(tokenizer), tokenizer_type="SentencePieceTokenizer")
    folder = save(build(config), config, 1)
    assert (folder / "tokenizer/tokenizer.model").read_bytes() == b"pieces"


def truncate(folder):
    path = next(folder.glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1000])


def garble(folder):
    """The size is right, the contents are not: only loading finds out."""
    path = folder / ".metadata"
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        garble,
        lambda folder: (folder / "common.pt").unlink(),
        lambda folder: (folder / layout.STATE_FILE).write_text("{"),
    ],
)
def test_a_broken_newest_checkpoint_falls_back(damage, tiny, build, save, load, caplog):
    config = tiny()
    model = build(config)
    train(model, 1, seed=1)
    save(model, config, 1)
    expected = snapshot(model)
    train(model, 1, seed=2)
    damage(save(model, config, 2))
    resumed = build(config)
    assert load(resumed, config).iteration == 1
    assert_equal(expected, snapshot(resumed))
    assert "iter_0000002" in caplog.text


def test_only_broken_checkpoints_end_the_run(tiny, build, save, load):
    config = tiny()
    model = build(config)
    truncate(save(model, config, 1))
    with pytest.raises(UserError, match=r"no complete checkpoint.*distcp has \d+ bytes instead of"):
        load(model, config)


def test_another_architecture_is_refused_before_any_weight_changes(tiny, build, save, load):
    config = tiny()
    save(build(config), config, 1)
    other = tiny(num_layers=4, ffn_hidden_size=64)
    model = build(other)
    before = snapshot(model)
    with pytest.raises(UserError, match="num_layers 2 there, 4 in the configuration; ffn_hidden_s"):
        load(model, other)
    assert_equal(before, snapshot(model))


def test_another_optimizer_kind_is_refused(tiny, build, save, load):
    config = tiny()
    save(build(config), config, 1)
    other = config.replace(use_distributed_optimizer=False)
    with pytest.raises(UserError, match="--no-load-optim"):
        load(build(other), other)
    load(build(other), other.replace(no_load_optim=True))


def test_thawing_a_part_starts_its_optimizer_anew(tiny, build, save, load, caplog):
    config = tiny(freeze_vision_tower=True)
    model = build(config)
    train(model, 1, seed=1)
    save(model, config, 1)
    thawed = config.replace(freeze_vision_tower=False)
    resumed = build(thawed)
    assert load(resumed, thawed).iteration == 1
    assert "freeze_vision_tower differs" in caplog.text
    train(resumed, 1, seed=2)


def test_no_checkpoint_yet(tiny, build, load):
    config = tiny()
    assert load(build(config), config) is None
    with pytest.raises(UserError, match="--exit-on-missing-checkpoint"):
        load(build(config), config.replace(exit_on_missing_checkpoint=True))


def test_a_crash_while_publishing_keeps_the_checkpoint_before(tmp_path):
    for name in ("iter_0000001", "iter_0000002", ".iter_0000003.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / layout.TRACKER).write_text("1\n")
    assert [p.name for p in layout.candidates(tmp_path)] == ["iter_0000001"]
    (tmp_path / layout.TRACKER).write_text("2\n")
    assert [p.name for p in layout.candidates(tmp_path)] == ["iter_0000002", "iter_0000001"]
    (tmp_path / layout.TRACKER).write_text("?")
    assert [p.name for p in layout.candidates(tmp_path)] == ["iter_0000002", "iter_0000001"]
    (tmp_path / "iter_0000002" / layout.STATE_FILE).write_text(json.dumps({}))
    assert layout.candidates(tmp_path / "iter_0000002") == [tmp_path / "iter_0000002"]


@pytest.fixture
def short_of_disk():
    """No file may become larger than so many bytes: what a full disk does to writers."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [64, 5_000, 100_000], ids=str)
def test_a_save_that_finds_no_room(size, short_of_disk, tiny, build, save, load, tmp_path):
    """Random states, the list of tensors, the shards: whatever comes first."""
    config = tiny()
    model = build(config)
    train(model, 1, seed=1)
    save(model, config, 1)
    expected = snapshot(model)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    train(model, 1, seed=2)
    short_of_disk(size)
    with pytest.raises(UserError, match=r"iter_0000002 could not be written: .* as they were"):
        save(model, config, 2)
    short_of_disk(resource.RLIM_INFINITY)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    resumed = build(config)
    assert load(resumed, config).iteration == 1
    assert_equal(expected, snapshot(resumed))
