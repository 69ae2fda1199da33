"""The critic of PPO: a second model in the policy's layout, with its own optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_longrl.models.critic import build_critic, copy_policy
from megatron_longrl.training.language_step import LanguageTrainStep
from megatron_longrl.training.losses import critic_loss
from megatron_longrl.training.model import TrainedModel, train_part
from megatron_longrl.training.output_heads import value_head
from megatron_longrl.training.runtime import Runtime
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.targets import ValueMicroBatch
from megatron_longrl.training.train_step import StepResult

CRITIC = "critic"
"""Name of the critic among the parts of a checkpoint."""


class Critic:
    """Values of states, learned from the returns of rollouts.

    It reads the embeddings that the policy's encoder gives, and does not train it.

    Args:
        runtime: the runtime of the policy. :meth:`begin` or a checkpoint gives the critic its
            weights.
    """

    def __init__(self, runtime: Runtime) -> None:
        config = runtime.config
        lr = (
            config.algorithm.critic_lr
            if config.algorithm.critic_lr is not None
            else 10 * config.training.lr
        )
        module = build_critic(config, runtime.groups)
        schedule = config.replace(lr=lr, min_lr=min(lr, config.training.min_lr)).training
        part, optimizer, scheduler = train_part(
            module,
            runtime.groups.pg,
            config.parallel,
            schedule,
        )
        self.model = TrainedModel(
            policy=part,
            encoders={},
            optimizers={"language_model": optimizer.chained_optimizers[0]},
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self._train_step = LanguageTrainStep(
            self.model, runtime.train_step.media_encoder, runtime.groups, value_head
        )
        self._loss = critic_loss(config.algorithm)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The critic's module by its name in checkpoints."""
        return {CRITIC: self.model.policy}

    @property
    def optimizers(self) -> dict[str, MegatronOptimizer]:
        """The critic's optimizer by its name in checkpoints."""
        return {CRITIC: self.model.optimizers["language_model"]}

    def begin(self, policy: GPTModel) -> None:
        """Start from the policy's weights."""
        copy_policy(self.model.policy.module, policy)
        self.optimizers[CRITIC].reload_model_params()

    def restore_schedule(self, iteration: int) -> None:
        """Put the schedule where it was after this number of steps."""
        scheduler = self.model.scheduler
        assert scheduler is not None
        scheduler.num_steps = 0
        scheduler.step(increment=iteration)

    def values(self, batches: Sequence[MicroBatch], media: Mapping[str, Tensor]) -> list[Tensor]:
        """[b, s / cp] of each micro-batch: the value before each response token; else 0."""
        return self._train_step.forward_values(batches, media)

    def scheduler_step(self) -> None:
        """Go on to the learning rate of the next iteration."""
        self._train_step.scheduler_step()

    def train(self, batches: Sequence[ValueMicroBatch], media: Mapping[str, Tensor]) -> StepResult:
        """One optimizer step towards ``returns``; its metrics over all ranks."""
        result = self._train_step.train(batches, media, None, self._loss, scheduler_step=False)
        metrics = dict(result.metrics)
        spread = metrics.pop("critic/return_square") - metrics["critic/return"] ** 2
        missed = metrics.pop("critic/error_square") - metrics.pop("critic/error") ** 2
        metrics |= {
            # Of the values before the update: 1 - Var(return - value) / Var(return).
            "critic/explained_variance": 1.0 - missed / spread if spread > 0 else 0.0,
            "critic/grad-norm": result.grad_norm,
            "critic/skipped": float(result.skipped),
        }
        return replace(result, metrics=metrics)
