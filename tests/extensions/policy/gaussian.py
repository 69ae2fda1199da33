"""A policy that is no language model: REINFORCE over continuous actions.

A small tensor-parallel MLP reads a context and gives the mean of a Gaussian action. The reward is
the negative squared distance of the action from a target that the MLP has to find. It is brought by

    longrl train-rl --plugin tests.extensions.policy.gaussian --model-family gaussian ...
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.config import Config, Entry, ModelConfig
from megatron_longrl.models.language import common_transformer_options
from megatron_longrl.models.policy import Policy, register_policy
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.training.forward_step import ActivationShape
from megatron_longrl.training.loop import TrainingLoop, start
from megatron_longrl.training.losses import LossReport, MetricSums
from megatron_longrl.training.run import Run, build_run
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


class GaussianTrainer:
    """REINFORCE on contexts that depend on the seed, the step and the replica only; a
    :class:`~megatron_longrl.training.loop.Trainer`."""

    validates = True
    is_ahead = False

    def __init__(self, run: Run) -> None:
        self._run = run
        self._policy: GaussianPolicy = run.model.policy.module
        self._step = TrainStep(run.model, None, run.groups, GaussianStep(self._policy))
        self.samples_per_step = run.config.rl.grpo_prompts_per_step * GROUP * run.groups.dp.size()

    def step(self, iteration: int, goes_on: Callable[[int], bool]) -> dict[str, float]:
        """See the protocol."""
        with self._run.timer("rollout"):
            batches, reward = self._sample(iteration)
        before = self._step.forward_scattered(batches, {})
        with self._run.timer("update"):
            result = self._step.train(batches, {}, None, reinforce)
        return {
            **result.metrics,
            "reward/mean": reward,
            "logprob": float(torch.cat(before).mean()),
            "grad-norm": result.grad_norm,
            "learning-rate": result.learning_rate,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The reward of the mean actions, always to the same contexts."""
        contexts = torch.randn(64, CONTEXT, generator=torch.Generator().manual_seed(0))
        return {"valid/reward": float(rewards(contexts, self._policy(contexts)).mean())}

    def state(self) -> dict[str, Any]:
        """Nothing: what a step draws follows from its number."""
        return {}

    def description(self) -> str:
        """See the protocol."""
        training = self._run.config.training
        return f"{self.samples_per_step} actions a step, {training.train_iters} steps"

    @torch.no_grad()
    def _sample(self, iteration: int) -> tuple[list[Actions], float]:
        """Micro-batches of this replica, and the mean reward of all."""
        config, dp = self._run.config, self._run.groups.dp
        seed = (config.training.seed * 1000 + iteration) * dp.size() + dp.rank()
        random = torch.Generator().manual_seed(seed)
        contexts = torch.randn(config.rl.grpo_prompts_per_step, CONTEXT, generator=random)
        contexts = contexts.repeat_interleave(GROUP, 0)
        noise = DEVIATION * torch.randn(len(contexts), ACTION, generator=random)
        actions = self._policy(contexts) + noise
        reward = rewards(contexts, actions).view(-1, GROUP)
        advantages = (reward - reward.mean(1, keepdim=True)).flatten()
        size = config.training.micro_batch_size
        parts = zip(contexts.split(size), actions.split(size), advantages.split(size), strict=True)
        total = reward.mean()
        torch.distributed.all_reduce(total, group=dp)
        return [Actions(*part) for part in parts], float(total) / dp.size()


def train(config: Config) -> None:
    """Run to the end."""
    run = build_run(config, "rl")
    TrainingLoop(run, start(run)).run(GaussianTrainer(run))


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
