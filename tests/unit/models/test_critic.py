"""A critic beside a policy with adapters."""

from __future__ import annotations

import pytest
import torch

from megatron_longrl.models.critic import VALUE_HEAD, build_critic, copy_policy
from megatron_longrl.models.lora import ADAPTER
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model
from tests.unit.made_up_config import make_config


@pytest.fixture(autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


@pytest.mark.parametrize(
    "fields", [{}, {"lora_rank": 2}, {"lora_rank": 2, "lora_parts": ("projector",)}]
)
def test_it_trains_what_the_policy_does_and_its_head(fields):
    config = make_config(**fields)
    groups = init_parallel(config.parallel, config.model)
    policy = build_model(config, groups).policy.module
    for name, parameter in policy.named_parameters():
        if name.endswith(ADAPTER):
            torch.nn.init.normal_(parameter)
    critic = build_critic(config, groups)
    copy_policy(critic, policy)
    own, theirs = (dict(model.named_parameters()) for model in (critic, policy))
    head = own.pop(f"{VALUE_HEAD}.weight")
    assert head.requires_grad and not head.any()
    assert set(own) == set(theirs)
    for name, parameter in own.items():
        assert parameter.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(parameter, theirs[name]) and parameter is not theirs[name], name
    adapters = [name for name in own if name.endswith(ADAPTER)]
    assert bool(adapters) == (fields == {"lora_rank": 2})
