"""What the tiny flow-matching models of the tests have in common."""

from __future__ import annotations

from typing import TypeVar

import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import import_named_tensors, mapping_table
from megatron_longrl.models.policy import find_policy
from megatron_longrl.parallel.groups import ParallelGroups

Model = TypeVar("Model", bound=torch.nn.Module)


def without_zeros(model: Model) -> Model:
    """A model of diffusers, made after ``torch.manual_seed``, none of whose weights is 0."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(True)


def take_weights(
    model: torch.nn.Module, theirs: torch.nn.Module, config: Config, groups: ParallelGroups
) -> None:
    """Fill this rank's part."""
    state = theirs.state_dict()
    import_named_tensors(
        {"policy": model}, config, groups, lambda name: state[name.removeprefix("transformer/")]
    )


def our_model(theirs: torch.nn.Module, config: Config, groups: ParallelGroups) -> torch.nn.Module:
    """This rank's part with diffusers' weights."""
    model_parallel_cuda_manual_seed(0)
    policy = find_policy(config.model.family)
    assert policy is not None, "a flow-matching family has one"
    model = policy.build(config, groups)
    take_weights(model, theirs, config, groups)
    return model


def random_inputs(
    latents: tuple[int, ...], text: int, pooled: int, seed: int = 0
) -> dict[str, Tensor]:
    """Latents, times, text of 5 tokens, and pooled text.

    Args:
        latents: their shape, the batch first.
        text: its width.
        pooled: its width.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = latents[0]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "latents": normal(*latents),
        "times": 1000 * torch.rand(batch, generator=generator),
        "text": normal(batch, 5, text),
        "pooled": normal(batch, pooled),
    }


def their_gradients(
    theirs: torch.nn.Module, config: Config, groups: ParallelGroups
) -> dict[str, Tensor]:
    """This rank's part of every gradient, by our names."""
    known = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {}
    for mapping in mapping_table(config).expand():
        names = [name.removeprefix("transformer/") for name in mapping.hf_params]
        if any(name not in known for name in names):
            continue  # the table of positions, which is no parameter there
        gradients = [known[name] for name in names]
        assert all(gradient is not None for gradient in gradients), names
        whole = mapping.merge([gradient for gradient in gradients if gradient is not None])
        part = mapping.shard(whole, groups.tp.rank(), groups.tp.size())
        found[mapping.megatron_param.removeprefix("policy.")] = part
    return found
