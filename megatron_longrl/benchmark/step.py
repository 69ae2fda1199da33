"""One RL step as every variant runs it: the trainer's own parts, with timers between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from megatron_longrl.benchmark.counters import WorkCounter
from megatron_longrl.benchmark.variants import Variant
from megatron_longrl.conversion.mapping import weight_stream
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import RewardedGroup, RolloutGroup, rollout_requests
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.spec import UnitTensors, load_units
from megatron_longrl.rewards.runner import RewardRunner
from megatron_longrl.rl.advantages import estimate_advantages
from megatron_longrl.rl.mini_batches import (
    ForwardResults,
    flatten,
    mini_batches,
    with_targets,
)
from megatron_longrl.rl.reference import ReferenceWeights
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.training.losses import rl_loss
from megatron_longrl.training.runtime import Runtime

PHASES = ("decode", "encode", "gather", "rollout", "logprobs", "update", "sync", "rest")


class EncodedAgain(Mapping[str, Tensor]):
    """Embeddings by the key of a medium, of which every look-up encodes the medium again.

    A trainer whose rows carry pixels does the same. They are decoded once.
    """

    def __init__(self, runtime: Runtime, prompts: Sequence[Prompt]) -> None:
        self._runtime = runtime
        specs = {spec.key(): spec for prompt in prompts for spec in prompt.media}
        with runtime.timer("decode"):
            results = load_units([(spec, range(spec.num_units)) for spec in specs.values()])
        self._specs = specs
        self._units: dict[str, UnitTensors] = {}
        for key, result in zip(specs, results, strict=True):
            if isinstance(result, MediaError):
                raise UserError(str(result))
            self._units[key] = result

    @torch.no_grad()
    def __getitem__(self, key: str) -> Tensor:
        spec = self._specs[key]
        encoder = self._runtime.train_step.media_encoder.encoder_for(spec)
        size = encoder.chunk_units(spec.preprocess)
        with self._runtime.timer("encode"):
            parts = [tensor.split(size) for tensor in self._units[key]]
            chunks = [(*inputs, spec.preprocess) for inputs in zip(*parts, strict=True)]
            return torch.cat([encoder.module(*chunk).flatten(0, -2) for chunk in chunks])

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)


class BenchmarkStep:
    """The step of one variant.

    Old log-probabilities and those of the reference are computed in separate passes, as Long-RL's
    step does; where the variant says so, the update's own values are the old ones.
    """

    def __init__(
        self,
        variant: Variant,
        runtime: Runtime,
        engine: RolloutEngine,
        rewards: RewardRunner,
        reference: ReferenceWeights,
        counter: WorkCounter,
    ) -> None:
        self.variant = variant
        self.runtime = runtime
        self.config = runtime.config
        self.engine = engine
        self.rewards = rewards
        self.reference = reference
        self.counter = counter
        self.loss = rl_loss(runtime.config.algorithm, runtime.config.rollout)
        self.version = 0
        self._sync()

    def run(
        self, iteration: int, rows: Sequence[Row]
    ) -> tuple[list[RewardedGroup], dict[str, float]]:
        """One step on the rows of this replica: its rollouts and the loss's metrics."""
        timer, train_step = self.runtime.timer, self.runtime.train_step
        with timer("rest"):
            prompts = self.runtime.build_prompts(rows)
        media = self._media(prompts)
        groups = self._rollout(iteration, prompts, media)
        with timer("rest"):
            rewarded = self.rewards.collect(groups)
            advantages, returns = estimate_advantages(
                rewarded, self.config.algorithm, self.runtime.groups
            )
            packed = mini_batches(rewarded, self.runtime)
            batches, _ = flatten(packed)
        self.counter.part = "logprobs"
        with timer("logprobs"):
            old = None
            if self.variant.old_pass:
                old = train_step.forward_logprobs(batches, media)
            with self.reference.in_place():
                ref = train_step.forward_logprobs(batches, media)
        (part,) = with_targets(packed, ForwardResults(old, ref), advantages, returns)
        self.counter.part = "update"
        with timer("update"):
            result = train_step.train(part.policy, media, None, self.loss)
        with timer("sync"):
            self._sync()
        return rewarded, result.metrics

    def _media(self, prompts: Sequence[Prompt]) -> Mapping[str, Tensor]:
        if self.variant.encodes_again:
            return EncodedAgain(self.runtime, prompts)
        with self.runtime.timer("encode"):  # decode and gather count for themselves
            kept, media = self.runtime.encode(prompts, for_training=True)
        assert len(kept) == len(prompts), "a video of the benchmark cannot be read"
        return media.embeddings

    def _rollout(
        self, iteration: int, prompts: Sequence[Prompt], media: Mapping[str, Tensor]
    ) -> list[RolloutGroup]:
        config = self.config
        sampling = SamplingSettings(
            n=config.rl.grpo_group_size,
            max_tokens=config.rollout.max_tokens,
            stop=False,
            seed=config.training.seed,
            step=iteration,
        )
        repeats = 1
        if self.variant.encodings_in_rollout == "per response":
            repeats = config.rl.grpo_group_size
        with self.runtime.timer("rollout"):
            for _ in range(repeats):
                embeddings = dict(media)
            requests = rollout_requests(prompts, f"{iteration}")
            return self.engine.generate(requests, embeddings, sampling)

    def _sync(self) -> None:
        runtime = self.runtime
        stream = weight_stream(runtime.model.modules, runtime.config, runtime.groups)
        self.engine.update_weights(stream, self.version)
        self.version += 1
