"""Reinforcement learning: one step is :meth:`RLTrainer.step`, read top to bottom."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrl.algorithms.advantages import ADVANTAGES
from megatron_longrl.checkpoint.distributed import load_weights
from megatron_longrl.checkpoint.mapping import weight_stream
from megatron_longrl.data.rows import Row
from megatron_longrl.rewards.score import score
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.types import Group, SamplingSettings
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.evaluation import answer, rollout_metrics, wilson_interval
from megatron_longrl.training.losses import rl_loss
from megatron_longrl.training.media import Media
from megatron_longrl.training.reference import (
    CopiedWeights,
    ReferenceWeights,
    WeightsBelowAdapters,
)
from megatron_longrl.training.runtime import Runtime
from megatron_longrl.training.sharding import MicroBatch


class RLTrainer:
    """GRPO-style training with colocated rollouts.

    Args:
        runtime: model, data and logs of the run.
        engine: generates responses; it gets the present weights here.
        reference: frozen weights of the KL term, when there is one.
    """

    def __init__(
        self, runtime: Runtime, engine: RolloutEngine, reference: ReferenceWeights | None
    ) -> None:
        self.runtime = runtime
        self.config = runtime.config
        self.engine = engine
        self.reference = reference
        self.loss = rl_loss(runtime.config)
        self.version = 0
        self._sync_weights()

    def step(self, iteration: int, rows: Sequence[Row]) -> dict[str, float]:
        """One RL step on the rows of this replica; returns its metrics over all replicas."""
        timer = self.runtime.timer
        with timer("data"):
            prompts = self.runtime.build_prompts(rows)
        with timer("encode"):
            prompts, media = self.runtime.encode(prompts, for_training=True)
        with timer("rollout"):
            groups = self.engine.generate(prompts, media.embeddings, self._sampling(iteration))
        with timer("reward"):
            score(groups, self.config)
            with_advantages(groups, self.config.rl_algorithm, self.config.advantage_epsilon)
        with timer("pack"):
            batches = rl_batches(groups, self.config, self.runtime.groups, self.runtime.machine)
        with timer("reference"):
            self._reference_logprobs(batches, media)
        with timer("update"):
            result = self.runtime.stepper.train(batches, media.embeddings, media.encoded, self.loss)
        with timer("sync"):
            self._sync_weights()
        return {
            **result.metrics,
            **rollout_metrics(self.runtime, groups)[0],
            **self.runtime.media_metrics(media),
            "grad-norm": result.grad_norm,
            "learning-rate": result.learning_rate,
        }

    def validate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Accuracy of greedy answers (or at --eval-temperature) to all rows of this replica."""
        groups = answer(self.runtime, self.engine, rows)
        metrics, count = rollout_metrics(self.runtime, groups)
        low, high = wilson_interval(metrics["accuracy/mean"], count)
        return {
            "valid/accuracy": metrics["accuracy/mean"],
            "valid/accuracy_low": low,
            "valid/accuracy_high": high,
            "valid/format": metrics["format/mean"],
            "valid/response_length": metrics["response_length/mean"],
            "valid/samples_skipped": self.runtime.media_metrics(None)["samples_skipped"],
        }

    def _sampling(self, iteration: int) -> SamplingSettings:
        config = self.config
        return SamplingSettings(
            n=config.grpo_group_size,
            max_tokens=config.rollout_max_tokens,
            temperature=config.rollout_temperature,
            top_p=config.rollout_top_p,
            top_k=config.rollout_top_k,
            seed=config.seed,
            step=iteration,
        )

    def _reference_logprobs(self, batches: Sequence[MicroBatch], media: Media) -> None:
        """Only where a KL term needs it."""
        if self.reference is None:
            return
        with self.reference.in_place():
            logprobs = self.runtime.stepper.logprobs(batches, media.embeddings)
        for batch, values in zip(batches, logprobs, strict=True):
            batch.ref_logprobs = values

    def _sync_weights(self) -> None:
        """Give the engine the newest weights of the language model."""
        stream = weight_stream(self.runtime.model.modules, self.config, self.runtime.groups)
        self.engine.update_weights(stream, self.version)
        self.version += 1


def build_reference(runtime: Runtime) -> ReferenceWeights | None:
    """The reference of the KL term: the weights of --pretrained-checkpoint, or the initial ones.

    Called before a checkpoint is loaded, so that a resumed run keeps its reference.
    """
    config = runtime.config
    if config.grpo_kl_beta == 0:
        return None
    if config.lora_rank and "language_model" in config.lora_parts:
        # The run starts from the same weights, those of a checkpoint with its adapters merged.
        return WeightsBelowAdapters(runtime.model.gpt)
    if config.pretrained_checkpoint is not None:
        load_weights(
            config.pretrained_checkpoint,
            modules=runtime.model.modules,
            optimizers=runtime.model.optimizers,
            groups=runtime.groups,
            config=config,
        )
    return CopiedWeights(runtime.model.gpt)


def with_advantages(groups: Sequence[Group], algorithm: str, epsilon: float) -> None:
    """Fill in ``advantages`` [n] of every group from its rewards."""
    for group in groups:
        assert group.rewards is not None, "rewards come before advantages"
        group.advantages = ADVANTAGES[algorithm](group.rewards, epsilon)
