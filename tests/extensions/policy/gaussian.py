"""A policy that is no language model: REINFORCE over continuous actions.

A small tensor-parallel MLP reads a context and gives the mean of a Gaussian action. The reward is
the negative squared distance of the action from a target that the MLP has to find. It is brought by

    longrl train-rl --plugin tests.extensions.policy.gaussian --model-family gaussian ...
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.checkpoint.loading import load_checkpoint
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.config import Config, Entry, ModelConfig
from megatron_longrl.models.language import common_transformer_options
from megatron_longrl.models.policy import Policy, register_policy
from megatron_longrl.observability.logging import MetricsLogger
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.forward_step import ActivationShape
from megatron_longrl.training.losses import LossReport, MetricSums
from megatron_longrl.training.model import build_model
from megatron_longrl.training.train_step import TrainStep

CONTEXT, ACTION, HIDDEN = 4, 2, 32
DEVIATION = 0.3
GROUP = 8
"""Actions for a context, whose mean reward is their baseline."""


class GaussianPolicy(MegatronModule):
    """Context [b, c] -> mean of the action [b, a]."""

    def __init__(self, config: ModelConfig, groups: ParallelGroups) -> None:
        options = TransformerConfig(
            num_layers=1,
            hidden_size=HIDDEN,
            num_attention_heads=config.parallel.tensor_model_parallel_size,
            tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
            **common_transformer_options(config.training, config.model),
        )
        super().__init__(options)
        self.model_type = ModelType.encoder_or_decoder
        common = {"config": options, "bias": True, "skip_bias_add": False, "tp_group": groups.tp}
        zeros = torch.nn.init.zeros_
        self.hidden = ColumnParallelLinear(
            CONTEXT, HIDDEN, init_method=torch.nn.init.xavier_normal_, gather_output=False, **common
        )
        self.mean = RowParallelLinear(
            HIDDEN, ACTION, init_method=zeros, input_is_parallel=True, **copy.copy(common)
        )

    def forward(self, contexts: Tensor) -> Tensor:
        """Means [b, a]."""
        return self.mean(torch.tanh(self.hidden(contexts)[0]))[0]

    def set_input_tensor(self, tensor: object) -> None:
        """There is one pipeline stage, which gets nothing."""


@dataclass
class Actions:
    """A micro-batch of this replica."""

    contexts: Tensor
    """[b, c]."""
    actions: Tensor
    """[b, a]."""
    advantages: Tensor
    """[b]."""


class GaussianStep:
    """The log-probabilities of a micro-batch's actions."""

    def __init__(self, policy: GaussianPolicy) -> None:
        self._policy = policy

    def __call__(self, batch: Actions, media: Mapping[str, Tensor]) -> Tensor:
        """[1, b]."""
        distances = ((batch.actions - self._policy(batch.contexts)) / DEVIATION).square().sum(1)
        constant = ACTION * (math.log(DEVIATION) + 0.5 * math.log(2 * math.pi))
        return (-0.5 * distances - constant)[None]

    def activation_shape(self, batch: Actions) -> ActivationShape:
        """Of one pipeline stage, which sends nothing."""
        return ActivationShape(sequence_length=1, batch_size=len(batch.contexts))

    def scatter(self, batch: Actions, values: Tensor | None) -> Tensor:
        """[b]."""
        return torch.zeros(len(batch.contexts)) if values is None else values


def reinforce(batch: Actions, logprobs: Tensor) -> tuple[Tensor, Tensor, LossReport]:
    """REINFORCE with the group's mean as baseline."""
    metrics = MetricSums()
    losses = -batch.advantages * logprobs
    metrics.add("lm loss", losses.detach())
    return losses.sum(), torch.tensor(len(losses), dtype=torch.int), LossReport(metrics)


def rewards(contexts: Tensor, actions: Tensor) -> Tensor:
    """[b]: how near the actions are to what the contexts ask for."""
    return -(actions - torch.sin(contexts[:, :ACTION])).square().sum(1)


def train(config: Config) -> None:
    """REINFORCE on contexts that depend on the seed, the step and the replica only."""
    platform.prepare()
    groups = init_parallel(config.parallel, config.model)
    model = build_model(config, groups)
    gaussian = model.policy.module
    step = TrainStep(model, None, groups, GaussianStep(gaussian))
    common: dict[str, Any] = {"modules": model.modules, "optimizers": model.optimizers}
    common |= {"scheduler": model.scheduler, "groups": groups, "config": config}
    loaded = (
        load_checkpoint(config.checkpoint.load, checkpoint=config.checkpoint, **common)
        if config.checkpoint.load is not None
        else None
    )
    first = loaded.iteration if loaded is not None else 0
    is_writer = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    with closing(MetricsLogger(config, "rl", is_writer)) as log:
        log.truncate_after(first)
        for iteration in range(first, config.training.train_iters):
            batches, reward = _sample(gaussian, config, groups, iteration)
            before = step.forward_scattered(batches, {})
            result = step.train(batches, {}, None, reinforce)
            metrics = {"reward/mean": reward, "logprob": float(torch.cat(before).mean())}
            metrics |= {"grad-norm": result.grad_norm, "learning-rate": result.learning_rate}
            log.log_step(iteration + 1, result.metrics | metrics)
            if (
                config.checkpoint.save is not None
                and (iteration + 1) % (config.checkpoint.save_interval or 1) == 0
            ):
                save_checkpoint(config.checkpoint.save, iteration + 1, state={}, **common)


@torch.no_grad()
def _sample(
    policy: GaussianPolicy, config: Config, groups: ParallelGroups, iteration: int
) -> tuple[list[Actions], float]:
    """Micro-batches of this replica, and its mean reward."""
    seed = (config.training.seed * 1000 + iteration) * groups.dp.size() + groups.dp.rank()
    random = torch.Generator().manual_seed(seed)
    contexts = torch.randn(config.rl.grpo_prompts_per_step, CONTEXT, generator=random)
    contexts = contexts.repeat_interleave(GROUP, 0)
    noise = DEVIATION * torch.randn(len(contexts), ACTION, generator=random)
    actions = policy(contexts) + noise
    reward = rewards(contexts, actions).view(-1, GROUP)
    advantages = (reward - reward.mean(1, keepdim=True)).flatten()
    size = config.training.micro_batch_size
    parts = zip(contexts.split(size), actions.split(size), advantages.split(size), strict=True)
    total = reward.mean()
    torch.distributed.all_reduce(total, group=groups.dp)
    return [Actions(*part) for part in parts], float(total) / groups.dp.size()


def rules(config: Config, world_size: int, entry: Entry | None) -> Iterator[str]:
    """What this policy cannot do."""
    if (
        config.parallel.pipeline_model_parallel_size > 1
        or config.parallel.context_parallel_size > 1
    ):
        yield "gaussian has one stage and no sequence: give --tensor-model-parallel-size"
    if HIDDEN % config.parallel.tensor_model_parallel_size:
        yield f"tensor_model_parallel_size does not divide {HIDDEN} channels: choose a divisor"


PROGRAMS: dict[Entry, Callable[[Config], None]] = {"rl": train}

GAUSSIAN = Policy(build=GaussianPolicy, programs=PROGRAMS, required=("train_iters",), rules=rules)
register_policy("gaussian", GAUSSIAN)
