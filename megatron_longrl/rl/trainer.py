"""Reinforcement learning: one step is :meth:`RLTrainer.step`, read top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.algorithms.correction import effective_sample_fraction
from megatron_longrl.algorithms.kl import adapted_weight, kl_estimate
from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.evaluation.answers import answer
from megatron_longrl.evaluation.asking import default_asking
from megatron_longrl.evaluation.intervals import wilson_interval
from megatron_longrl.evaluation.metrics import (
    benchmark_accuracies,
    reward_counters,
    rollout_metrics,
)
from megatron_longrl.experience.rollouts import RewardedGroup
from megatron_longrl.media.encoder import EncodedMedia
from megatron_longrl.media.provider import Media
from megatron_longrl.models.language import output_weight
from megatron_longrl.parallel.logprobs import ReferenceLogits
from megatron_longrl.parallel.sums import sum_over_replicas
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.rl.advantages import estimate_advantages
from megatron_longrl.rl.collector import RolloutCollector, RolloutRound, StepRollouts
from megatron_longrl.rl.input_parity import check_input_parity
from megatron_longrl.rl.mean_metrics import mean_metrics
from megatron_longrl.rl.mini_batches import (
    ForwardResults,
    TrainingMiniBatch,
    flatten,
    mini_batches,
    with_targets,
)
from megatron_longrl.rl.mismatch import mismatch_metrics
from megatron_longrl.rl.reference import (
    AdapterDisabledReference,
    CopiedWeights,
    ReferenceWeights,
)
from megatron_longrl.rl.weight_sync import WeightSync
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.records.recorder import RolloutRecorder, StepOutcome
from megatron_longrl.training.critic import Critic
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.losses import LOG_RATIO, rl_loss
from megatron_longrl.training.run import Run
from megatron_longrl.training.runtime import Runtime
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.token_values import ByRollout, gather_by_rollout
from megatron_longrl.training.train_step import SkippedUpdates

logger = logging.getLogger(__name__)


class RLTrainer:
    """The trainer of ``--rl-algorithm`` on rollouts of an engine.

    Args:
        runtime: model, data and logs of the run.
        engine: generates responses; it gets the present weights here.
        rewards: scores responses while others are being generated.
        reference: frozen weights of the KL term, when there is one.
        critic: the critic that gae needs; None without gae.
        state: the state that :meth:`state` returned when the run was saved.
        recorder: writes what was generated.
    """

    def __init__(
        self,
        runtime: Runtime,
        engine: RolloutEngine,
        rewards: Rewards,
        reference: ReferenceWeights | None,
        critic: Critic | None = None,
        state: Mapping[str, Any] | None = None,
        recorder: RolloutRecorder | None = None,
    ) -> None:
        self.runtime = runtime
        self.config = runtime.config
        self.engine = engine
        self.rewards = rewards
        self.reference = reference
        self.critic = critic
        self.recorder = recorder
        self.sync = WeightSync(runtime, engine, state)
        self.beta = float((state or {}).get("kl_beta", self.config.algorithm.grpo_kl_beta))
        self._skips = SkippedUpdates.restored(state)
        self._critic_skips = SkippedUpdates.restored(state, "critic")
        self._started: RolloutRound | None = None
        """The first round of the next step, under --rollout-lag 1."""
        self._validations = 0
        self.loss = rl_loss(self.config.algorithm, self.config.rollout, lambda: self.beta)
        self.collector = RolloutCollector(
            runtime,
            engine,
            rewards,
            # More rounds, more updates or an update in between need them anew.
            keeps_frames=self.config.updates_per_step == 1
            and not self.config.algorithm.dynamic_sampling
            and not self.config.rollout.lag,
            recorder=recorder,
        )
        self.sync()

    def step(self, iteration: int, source: DataIterator) -> dict[str, float]:
        """Run one RL step and return its metrics over all replicas."""
        timer, traffic = self.runtime.timer, self.engine.stats
        rollouts = self._rollouts(iteration, source)
        if self.engine.stops_early:
            self.runtime.stop_if_asked()  # They may have been ended, too.
        media = rollouts.media
        lag, carried = self._staleness(rollouts)
        with timer("pack"):
            packed = mini_batches(rollouts.groups, self.runtime)
            batches, trained_groups = flatten(packed)
        if not packed and self.runtime.is_writer:
            logger.warning("step %d makes no update: no group teaches anything", iteration + 1)
        with timer("input_parity"):
            self._check_input_parity(batches, trained_groups, media)
        results = self._forward_results(batches, media)
        with timer("advantages"):
            advantages, returns = self._advantages(rollouts.groups, batches, results)
            parts = with_targets(packed, results, advantages, returns)
        if self.recorder is not None:
            # Before the update, so that one that goes wrong can be replayed.
            with timer("record"):
                trained = {group.group_id for group in rollouts.groups}
                outcome = StepOutcome(rollouts.generated, trained, advantages)
                self.recorder.write(iteration, outcome, timer.so_far())
        metrics = self._train(iteration, parts, media)
        if self._started is not None:
            self.collector.wait(self._started, self.sync.version, source)  # older weights'
        with timer("sync"):
            self.sync()
        self._after(iteration, metrics)
        return {
            **metrics,
            **rollout_metrics(self.runtime, rollouts.generated)[0],
            **reward_counters(self.runtime, self.rewards),
            **self.runtime.media_metrics(media),
            **self.sync.metrics(traffic),
            **(
                {"sampling_rounds": rollouts.rounds}
                if self.config.algorithm.dynamic_sampling
                else {}
            ),
            **({"rollout_lag": lag} if self.config.rollout.trains_on_older_weights else {}),
            **({"partial_groups": carried} if self.config.rollout.step_tokens else {}),
        }

    def validate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Accuracy of greedy answers (or at --eval-temperature) to all rows of this replica."""
        self._validations += 1
        name = f"validation {self._validations}"
        way = default_asking(self.config.data, self.runtime.builder)
        (found,) = answer(self.runtime, self.engine, self.rewards, rows, [way], name)
        if self.engine.stops_early:
            self.runtime.stop_if_asked()
        metrics, count = rollout_metrics(self.runtime, found.groups)
        by_the_rule = benchmark_accuracies(self.runtime, found.groups)
        counters = reward_counters(self.runtime, self.rewards)
        low, high = wilson_interval(metrics["accuracy/mean"], count)
        parts = {f"valid/{k}": v for k, v in metrics.items() if k.startswith("accuracy/")}
        parts.pop("valid/accuracy/mean")
        return {
            **parts,
            "valid/accuracy": metrics["accuracy/mean"],
            "valid/accuracy_low": low,
            "valid/accuracy_high": high,
            **{f"valid/benchmark_accuracy/{name}": value for name, value in by_the_rule.items()},
            "valid/reward": metrics["reward/mean"],
            "valid/format": metrics["format/mean"],
            "valid/response_length": metrics["response_length/mean"],
            "valid/samples_skipped": self.runtime.media_metrics(None)["samples_skipped"],
            **{f"valid/{name}": value for name, value in counters.items()},
        }

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        skips = self._skips.state() | self._critic_skips.state()
        return {"kl_beta": self.beta, **self.sync.state(), **skips}

    def _rollouts(self, iteration: int, source: DataIterator) -> StepRollouts:
        """The rollouts of this step. Under --rollout-lag 1 the next step's are started as well,
        with the weights from before this step's update: a server generates them during it, an
        engine within the trainer's processes before it, and they are scored during it."""
        first = self._started or self.collector.start(iteration, source)
        rollouts = self.collector.collect_step(first, source)
        self._started = None
        if self.config.rollout.lag and source.goes_on(iteration):
            self._started = self.collector.start(iteration + 1, source)
        return rollouts

    def _staleness(self, rollouts: StepRollouts) -> tuple[float, int]:
        """Return the mean number of versions between the weights and those that generated a token,
        over all replicas, and the number of groups that continue in the next step."""
        newest = self.engine.weight_version
        segments = [
            segment
            for group in rollouts.groups
            for rollout in group.rollouts
            for segment in rollout.segments
        ]
        tokens = sum(segment.num_tokens for segment in segments)
        lags = sum(segment.num_tokens * (newest - segment.weight_version) for segment in segments)
        sums = torch.tensor([float(lags), float(tokens), float(rollouts.carried)])
        total, count, carried = sum_over_replicas(sums, self.runtime.groups).tolist()
        return total / count if count else 0.0, int(carried)

    def _check_input_parity(
        self, batches: Sequence[MicroBatch], groups: Sequence[RewardedGroup], media: Media
    ) -> None:
        """Check that the inputs of training are exactly those of the engine; a replay has its own
        check."""
        if self.config.records.replay_rollouts is not None:
            return
        model = self.runtime.model
        check_input_parity(
            batches,
            groups,
            media.embeddings,
            model.policy.module,
            self.runtime.groups,
            weight_version=self.engine.weight_version,
            media_change=bool(model.trained_encoders),
        )

    def _forward_results(self, batches: Sequence[MicroBatch], media: Media) -> ForwardResults:
        """All passes before the update, those that are needed."""
        timer, train_step = self.runtime.timer, self.runtime.train_step
        old = ref = reference_logits = values = None
        with timer("old"):
            # Only where the update's own values are not the same, or come too late.
            if batches and self.config.needs_old_logprobs:
                old = train_step.forward_logprobs(batches, media.embeddings)
        with timer("reference"):
            if batches and self.reference is not None and self.config.algorithm.kl_type == "full":
                reference_logits = self._reference_logits(self.reference, batches, media)
            elif batches and self.reference is not None:
                with self.reference.in_place():
                    ref = train_step.forward_logprobs(batches, media.embeddings)
        with timer("values"):
            if batches and self.critic is not None:
                values = self.critic.values(batches, media.embeddings)
        return ForwardResults(old, ref, reference_logits, values)

    def _reference_logits(
        self, reference: ReferenceWeights, batches: Sequence[MicroBatch], media: Media
    ) -> list[ReferenceLogits] | None:
        """Return the reference's logits of each micro-batch, for the divergence over the whole
        vocabulary, on the last pipeline stage."""
        with reference.in_place():
            hidden = self.runtime.train_step.forward_hidden(batches, media.embeddings)
        if not self.runtime.groups.is_last_stage:
            return None
        weight = reference.held(output_weight(self.runtime.model.policy.module))
        return [ReferenceLogits(states, weight) for states in hidden]

    def _advantages(
        self,
        groups: Sequence[RewardedGroup],
        batches: Sequence[MicroBatch],
        results: ForwardResults,
    ) -> tuple[ByRollout, ByRollout]:
        """The advantages of every token, and the returns that the critic learns."""
        config, pgs = self.config, self.runtime.groups
        token_rewards = values = None
        old, ref = results.old_logprobs, results.ref_logprobs
        if config.algorithm.rewards_tokens and old is not None and ref is not None:
            penalties = [
                -self.beta * kl_estimate(own, reference, config.algorithm.kl_type)
                for own, reference in zip(old, ref, strict=True)
            ]
            token_rewards = gather_by_rollout(batches, penalties, groups, pgs)
        if results.values is not None:
            values = gather_by_rollout(batches, results.values, groups, pgs)
        return estimate_advantages(
            groups, config.algorithm, pgs, token_rewards=token_rewards, values=values
        )

    def _train(
        self, iteration: int, parts: Sequence[TrainingMiniBatch], media: Media
    ) -> dict[str, float]:
        """All updates of the step; means of their metrics."""
        config, train_step = self.config, self.runtime.train_step
        order = [*range(len(parts))] * config.rl.grpo_iterations
        if not order:
            return self._without_update()
        metrics = self._train_critic(iteration, parts, media)
        skipped = 0
        if self.critic is not None and iteration < config.algorithm.critic_warmup_steps:
            train_step.scheduler_step()  # The schedule follows iterations all the same.
            order = []
        log_ratios: dict[int, Sequence[Tensor]] = {}
        for number, chosen in enumerate(order):
            part = parts[chosen]
            with self.runtime.timer("encode"):
                embeddings, encoded = self._media_of(part, media)
            last = number == len(order) - 1
            with self.runtime.timer("update"):
                update = train_step.train(
                    part.policy, embeddings, encoded, self.loss, scheduler_step=last
                )
            log_ratios[chosen] = [of_batch[LOG_RATIO] for of_batch in update.per_token]
            skipped += update.skipped
            self._skips.count(update, iteration)
            metrics.append(_with_eff_sample_size(update.as_metrics()))
        mismatch = mismatch_metrics(
            [batch for chosen in log_ratios for batch in parts[chosen].policy],
            [values for of_part in log_ratios.values() for values in of_part],
            [group for chosen in log_ratios for group in parts[chosen].rollout_groups],
            self.runtime.groups,
        )
        return {
            **mean_metrics(metrics),
            **mismatch,
            "updates": len(order),
            "skipped_updates": skipped,
        }

    def _train_critic(
        self, iteration: int, parts: Sequence[TrainingMiniBatch], media: Media
    ) -> list[dict[str, float]]:
        """All updates of the critic, before the policy's: the embeddings are still its own."""
        metrics: list[dict[str, float]] = []
        if self.critic is None:
            return metrics
        left = list(parts)
        for _ in range(self.config.algorithm.critic_iterations):
            results = []
            for part in left:
                with self.runtime.timer("critic"):
                    results.append(self.critic.train(part.value, media.embeddings))
                metrics.append(results[-1].metrics)
                self._critic_skips.count(results[-1], iteration)
            # What was skipped would only be so once more.
            left = [part for part, r in zip(left, results, strict=True) if not r.skipped]
        self.critic.scheduler_step()
        return metrics

    def _without_update(self) -> dict[str, float]:
        """A step that has nothing to train on: the schedules follow iterations nevertheless."""
        train_step = self.runtime.train_step
        metrics = {"grad-norm": 0.0, "learning-rate": train_step.learning_rate}
        train_step.scheduler_step()
        if self.critic is not None:
            self.critic.scheduler_step()
        return {**metrics, "updates": 0, "skipped_updates": 0}

    def _media_of(
        self, part: TrainingMiniBatch, media: Media
    ) -> tuple[Mapping[str, Tensor], EncodedMedia | None]:
        """Embeddings for the backward pass of one update; an encoder that has been trained since
        they were made encodes again."""
        if media.encoded is not None or not self.runtime.model.trained_encoders:
            return media.embeddings, media.encoded
        prompts = [group.prompt for group in part.rollout_groups]
        kept, again = self.runtime.encode(prompts, for_training=True)
        if len(kept) < len(prompts):
            reason = next(iter(again.failed.values()))
            raise UserError(f"{reason}, though it could be read a moment ago")
        return again.embeddings, again.encoded

    def _after(self, iteration: int, metrics: dict[str, float]) -> None:
        """Finish a step: update the weight of the KL term and reset the reference."""
        config = self.config
        if config.algorithm.kl_target is not None and "kl/mean" in metrics:
            metrics["kl/beta"] = self.beta
            self.beta = adapted_weight(
                self.beta,
                metrics["kl/mean"],
                config.algorithm.kl_target,
                config.rl.grpo_prompts_per_step * config.rl.grpo_group_size,
                config.algorithm.kl_horizon,
            )
        interval = config.algorithm.ref_reset_interval
        if self.reference is not None and interval and (iteration + 1) % interval == 0:
            self.reference.reset()


def build_reference(runtime: Run) -> ReferenceWeights | None:
    """The reference of the KL term: the weights of --pretrained-checkpoint, or the initial ones.

    Called before a checkpoint is loaded, so that a resumed run keeps its reference.
    """
    config = runtime.config
    if config.algorithm.grpo_kl_beta == 0:
        return None
    if config.lora.rank and "language_model" in config.lora.parts:
        # The run starts from the same weights, those of a checkpoint with its adapters merged.
        return AdapterDisabledReference(runtime.model.policy.module)
    if config.checkpoint.pretrained_checkpoint is not None:
        load_weights(
            config.checkpoint.pretrained_checkpoint,
            modules=runtime.model.modules,
            optimizers=runtime.model.optimizers,
            groups=runtime.groups,
            config=config,
        )
    return CopiedWeights(runtime.model.policy.module)


def follow_resets(runtime: Runtime, reference: ReferenceWeights | None, iteration: int) -> None:
    """Take the weights that the reference had when the run that is resumed reset it last.

    Raises:
        UserError: they are those of another step than the checkpoint's.
    """
    interval = runtime.config.algorithm.ref_reset_interval
    if reference is None or interval is None or iteration < interval:
        return
    if iteration % interval:
        raise UserError(
            f"--ref-reset-interval {interval} made the policy of step "
            f"{iteration - iteration % interval} the reference, but the checkpoint is of step "
            f"{iteration}: save at its multiples, and continue from one of those"
        )
    reference.reset()


def _with_eff_sample_size(metrics: dict[str, float]) -> dict[str, float]:
    """The effective sample share in place of the mean square of the correction's weights."""
    square = metrics.pop("rollout_corr/rollout_is_square", None)
    if square is not None:
        share = effective_sample_fraction(metrics["rollout_corr/rollout_is_mean"], square, 1.0)
        metrics["rollout_corr/rollout_is_eff_sample_size"] = share
    return metrics
