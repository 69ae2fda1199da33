"""The model of a run: its data-parallel parts, their optimizer and their schedule.

The language model is sharded over TP, MR-SP and PP, and reduced over its data-parallel ranks. The
encoders are replicated on every rank, each with its own units of media, and reduced over the world;
with --vision-tensor-parallel a vision tower is sharded over TP, too. A text family has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_longrl.conversion.initialize import initialize_weights
from megatron_longrl.models.build import build_modules, encoder_groups
from megatron_longrl.models.family import find_family
from megatron_longrl.models.lora import ADAPTER, train_adapters_only
from megatron_longrl.models.policy import find_policy

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.config.training import TrainingSection
    from megatron_longrl.parallel.groups import ParallelGroups


POLICY = "policy"
"""Name in checkpoints of a policy that is no language model."""


@dataclass
class TrainedModel:
    """The parts of the model, wrapped for data parallelism, and what updates them."""

    policy: DistributedDataParallel
    """The policy that runs under Megatron's schedule: a language model, unless the family has
    another."""
    encoders: dict[str, DistributedDataParallel]
    """The encoders of media by their names in checkpoints and mappings."""
    optimizers: dict[str, MegatronOptimizer]
    """One per part that is trained."""
    optimizer: FiniteOptimizer | None
    """All of them as one; None when the model is only run."""
    scheduler: OptimizerParamScheduler | None
    policy_name: str = "language_model"
    """Name of the policy in checkpoints and mappings."""
    encoder_version: int = 0
    """Updates that have changed the weights of the encoders that are trained, so that no stale
    embedding is used."""
    policy_version: int = 0
    """Updates that have changed the policy's weights."""

    @property
    def policy_is_trained(self) -> bool:
        """Whether the step updates the policy."""
        return self.policy_name in self.optimizers

    @property
    def trained_encoders(self) -> list[str]:
        """The names of the encoders that the step updates."""
        return [name for name in self.encoders if name in self.optimizers]

    def count_update(self) -> None:
        """Count an update that has changed the trained weights."""
        self.encoder_version += bool(self.trained_encoders)
        self.policy_version += self.policy_is_trained

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The parts by the names that checkpoints and mappings use."""
        return {self.policy_name: self.policy, **self.encoders}


def build_model(config: ModelConfig, groups: ParallelGroups, *, train: bool = True) -> TrainedModel:
    """Build, initialise, freeze, wrap, and make the optimizer.

    Args:
        config: the configuration of a language model with ``vocab_size`` filled in.
        train: False for evaluation, which needs no optimizer and no adapters.
    """
    model_parallel_cuda_manual_seed(config.training.seed)
    policy = find_policy(config.model.family)
    if not train:
        config = replace(config, lora=config.lora.model_copy(update={"rank": 0}))
    if policy is not None:
        built = policy.build(config, groups)
        if policy.weights is not None:
            initialize_weights({POLICY: built}, config, groups)
        if any(name.endswith(ADAPTER) for name, _ in built.named_parameters()):
            train_adapters_only(built)
        return _wrapped_policy(built, config.parallel, config.training, groups, train=train)
    assert config.model.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
    modules = build_modules(config, groups)
    initialize_weights(modules, config, groups)
    if not train:
        for whole in modules.values():
            whole.requires_grad_(False)
    for name, place in config.family.parts.items():
        module, _, inner = place.partition(".")
        if module not in modules:
            continue
        part = modules[module].get_submodule(inner)
        if name not in config.trained_parts:
            part.requires_grad_(False)
        elif config.lora.rank and name in config.lora.parts:
            train_adapters_only(part)
    collections = {"language_model": groups.pg}
    for name, encoder in find_family(config.model.family).encoders.items():
        collections[name] = encoder_groups(encoder, config.parallel, groups).pg
    wrapped = {
        name: _wrap(module, collections[name], config.parallel) for name, module in modules.items()
    }
    optimizers = {}
    for name, module in wrapped.items():
        if any(parameter.requires_grad for parameter in module.parameters()):
            optimizers[name] = _optimizer(
                module, collections[name], config.training, config.parallel
            )
    optimizer = FiniteOptimizer(list(optimizers.values())) if optimizers else None
    return TrainedModel(
        policy=wrapped["language_model"],
        encoders={name: part for name, part in wrapped.items() if name != "language_model"},
        optimizers=optimizers,
        optimizer=optimizer,
        scheduler=_scheduler(config.training, optimizer) if optimizer is not None else None,
    )


def _wrapped_policy(
    module: torch.nn.Module,
    parallel: ParallelSection,
    training: TrainingSection,
    groups: ParallelGroups,
    *,
    train: bool,
) -> TrainedModel:
    """A model of one module, which is no language model."""
    if train:
        policy, optimizer, scheduler = train_part(module, groups.pg, parallel, training)
        optimizers = {POLICY: optimizer.chained_optimizers[0]}
        return TrainedModel(policy, {}, optimizers, optimizer, scheduler, policy_name=POLICY)
    policy = _wrap(module.requires_grad_(False), groups.pg, parallel)
    return TrainedModel(policy, {}, {}, None, None, policy_name=POLICY)


class FiniteOptimizer(ChainedOptimizer):
    """Core's chain, which skips a step whose gradient has no finite norm.

    All ranks that share weights, or parts of them, have the same norm and skip together.
    """

    def prepare_grads(self) -> bool:
        """Whether the step is to be skipped; see core's optimizer.py, ChainedOptimizer.step."""
        skipped = super().prepare_grads()
        self._norm = float(super().get_grad_norm())
        return skipped or not math.isfinite(self._norm)

    def get_grad_norm(self) -> float:
        """Return the norm of the gradients that were prepared last."""
        return self._norm


def train_part(
    module: torch.nn.Module,
    collection: ProcessGroupCollection,
    parallel: ParallelSection,
    training: TrainingSection,
) -> tuple[DistributedDataParallel, FiniteOptimizer, OptimizerParamScheduler]:
    """Wrap a separate module for training, with its optimizer and its schedule."""
    wrapped = _wrap(module, collection, parallel)
    optimizer = FiniteOptimizer([_optimizer(wrapped, collection, training, parallel)])
    return wrapped, optimizer, _scheduler(training, optimizer)


def _wrap(
    module: torch.nn.Module, collection: ProcessGroupCollection, parallel: ParallelSection
) -> DistributedDataParallel:
    return DistributedDataParallel(
        module.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=False,
            use_distributed_optimizer=parallel.use_distributed_optimizer,
        ),
        module,
        pg_collection=collection,
    )


def _optimizer(
    module: DistributedDataParallel,
    collection: ProcessGroupCollection,
    training: TrainingSection,
    parallel: ParallelSection,
) -> MegatronOptimizer:
    return get_megatron_optimizer(
        _optimizer_config(training, parallel),
        [module],
        use_gloo_process_groups=False,
        pg_collection=collection,
    )


def _optimizer_config(training: TrainingSection, parallel: ParallelSection) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam",
        lr=training.lr,
        min_lr=training.min_lr,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_eps=training.adam_eps,
        clip_grad=training.clip_grad,
        bf16=training.bf16,
        params_dtype=training.params_dtype,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
    )


def _scheduler(training: TrainingSection, optimizer: ChainedOptimizer) -> OptimizerParamScheduler:
    """Learning rate per optimizer step (not per sample)."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=training.lr,
        min_lr=training.min_lr,
        lr_warmup_steps=training.lr_warmup_steps,
        lr_decay_steps=max(training.lr_decay_iters, training.lr_warmup_steps + 1),
        lr_decay_style=training.lr_decay_style,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=training.train_iters,
        wd_incr_style="constant",
    )
