"""The reference of the KL term is the model that RL started from, copied or below its adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import local_adapters
from megatron_longrl.models.language import output_weight
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.rl.reference import AdapterDisabledReference, CopiedWeights, ReferenceWeights
from megatron_longrl.rl.trainer import build_reference
from megatron_longrl.training.model import TrainedModel, build_model
from tests.parity.comparison import logits as logits_of
from tests.unit.made_up_config import make_config

TOKENS = torch.arange(12).view(2, 6)
POSITIONS = torch.arange(6).expand(2, -1)


@pytest.fixture(autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


def started(**fields: Any) -> tuple[TrainedModel, ReferenceWeights | None]:
    config = make_config(grpo_kl_beta=0.1, **fields)
    model = build_model(config, init_parallel(config.parallel, config.model))
    runtime = SimpleNamespace(config=config, model=model, groups=None)
    return model, build_reference(cast(Any, runtime))


@torch.no_grad()
def logits(model: TrainedModel) -> torch.Tensor:
    return logits_of(model.policy.module, TOKENS, POSITIONS)


def change(model: TrainedModel) -> None:
    """What training may change."""
    with torch.no_grad():
        for parameter in model.policy.module.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, CopiedWeights),
        ({"lora_rank": 2}, AdapterDisabledReference),
        ({"lora_rank": 2, "lora_parts": ("projector",)}, CopiedWeights),
    ],
)
def test_it_stays_what_the_model_was_at_the_start(fields, kind):
    model, reference = started(**fields)
    assert reference is not None and type(reference) is kind
    start = logits(model)
    change(model)
    changed = logits(model)
    assert (changed - start).abs().max() > 1e-3
    with reference.in_place():
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reset_takes_the_policy_of_that_moment(rank):
    model, reference = started(lora_rank=rank)
    assert reference is not None
    start = logits(model)
    change(model)
    then = logits(model)
    output = output_weight(model.policy.module).detach().clone()
    reference.reset()
    change(model)
    now = logits(model)
    for _ in range(2):
        with reference.in_place():
            assert torch.equal(logits(model), then)
        assert torch.equal(logits(model), now)
    assert min((then - start).abs().max(), (now - then).abs().max()) > 1e-3
    assert torch.equal(reference.held(output_weight(model.policy.module)), output)


def test_below_adapters_nothing_is_copied_and_nothing_else_trained():
    model, reference = started(lora_rank=2)
    assert isinstance(reference, AdapterDisabledReference)
    weight = output_weight(model.policy.module)
    assert reference.held(weight).data_ptr() == weight.data_ptr()
    trained = {name for name, p in model.policy.module.named_parameters() if p.requires_grad}
    layers = [f"decoder.layers.{n}." for n in range(2)]
    adapted = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1")
    expected = {
        f"{layer}{name}.lora.{m}"
        for layer in layers
        for name in (*adapted, "mlp.linear_fc2")
        for m in "AB"
    }
    assert trained == expected
    # Gradients of adapters alone have memory.
    held = {id(p) for buffer in model.policy.buffers for p in buffer.param_index_map}
    assert held == {id(p) for p in model.policy.module.parameters() if p.requires_grad}


def test_parts_and_layers_without_adapters_train_as_before():
    config = make_config(
        lora_rank=2,
        lora_parts=("projector", "vision_tower"),
        lora_target_modules=("linear_proj",),
        freeze_language_model=True,
    )
    model = build_model(config, init_parallel(config.parallel, config.model))
    adapters = set(local_adapters(model.modules))
    tower = "encoder.vision_tower.decoder.layers.{}.self_attention.linear_proj.weight"
    assert adapters == {
        *(tower.format(n) for n in range(2)),
        "encoder.projector.layers.2.weight",
        "encoder.projector.layers.4.weight",
    }
    assert set(model.optimizers) == {"encoder"}


def test_evaluation_has_no_adapters():
    config: Config = make_config(lora_rank=2)
    model = build_model(config, init_parallel(config.parallel, config.model), train=False)
    assert not local_adapters(model.modules)
