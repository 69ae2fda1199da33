"""Rules across the fields of reinforcement learning; see :mod:`megatron_longrl.cli.rules`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.algorithm_parts import ADVANTAGES, POLICY_LOSSES
from megatron_longrl.config.names import flag
from megatron_longrl.config.presets import algorithm_names
from megatron_longrl.data.curriculum import parse_stages

if TYPE_CHECKING:
    from megatron_longrl.config.algorithm import AlgorithmSection
    from megatron_longrl.config.checkpoint import CheckpointSection
    from megatron_longrl.config.data import DataSection
    from megatron_longrl.config.rl import RLSection
    from megatron_longrl.config.rollout import RolloutSection
    from megatron_longrl.config.schema import Config
    from megatron_longrl.config.training import TrainingSection


def rl_rules(config: Config, world_size: int) -> Iterator[str]:
    """A line for every rule that does not hold."""
    replicas = config.parallel.data_parallel_size(world_size)
    yield from _batch(config.rl, config.training.global_batch_size, replicas)
    yield from _temperature(config.rollout)
    yield from _of_language_models(config.algorithm)
    yield from _advantage(config.algorithm, config.rl, config.training)
    yield from _kl(config.algorithm, config.checkpoint)
    yield from _filters(config.algorithm, config.rl)
    yield from _correction(config.rollout, config.algorithm)


def curriculum_rules(data: DataSection) -> Iterator[str]:
    """Yield the violations of the curriculum's rules, which hold for SFT and RL."""
    try:
        stages = parse_stages(data.video_frames_curriculum)
    except ValueError as error:
        yield f"video_frames_curriculum: {error}"
        return
    most = max((frames for _, frames in stages), default=0)
    if data.video_frames is not None and most > data.video_frames:
        yield (
            f"video_frames_curriculum goes up to {most} frames, more than video_frames "
            f"({data.video_frames}): raise --video-frames, which the other checks reckon with"
        )


def _of_language_models(algorithm: AlgorithmSection) -> Iterator[str]:
    if algorithm.rl_algorithm in algorithm_names(flow=True):
        yield (
            f"rl_algorithm {algorithm.rl_algorithm} is for flow-matching models: give "
            f"--rl-algorithm {', '.join(algorithm_names(flow=False))}"
        )


def _batch(rl: RLSection, size: int | None, replicas: int) -> Iterator[str]:
    """The prompts of a step go into whole updates.

    Args:
        size: responses of an update, where it is given.
        replicas: number of model replicas.
    """
    prompts, group = rl.grpo_prompts_per_step, rl.grpo_group_size
    if prompts < 1:
        yield "grpo_prompts_per_step (0) must be positive: give --grpo-prompts-per-step N"
    if prompts % replicas:
        yield (
            f"grpo_prompts_per_step ({prompts}) is not divisible by the data-parallel size "
            f"({replicas}): choose a multiple, e.g. --grpo-prompts-per-step "
            f"{math.ceil(prompts / replicas) * replicas}"
        )
    if size is not None and ((prompts * group) % size or size % (group * replicas)):
        yield (
            f"global_batch_size ({size}) cuts the {prompts * group} responses of a step "
            f"(grpo_prompts_per_step {prompts} x grpo_group_size {group}) not into equal updates "
            f"of whole groups for {replicas} replicas: choose a multiple of {group * replicas} "
            f"that divides {prompts * group}, or leave it out for one update"
        )


def _temperature(rollout: RolloutSection) -> Iterator[str]:
    if rollout.temperature == 0:
        yield (
            "rollout_temperature (0) makes all responses of a group equal: "
            "give --rollout-temperature 1"
        )


def _advantage(
    algorithm: AlgorithmSection, rl: RLSection, training: TrainingSection
) -> Iterator[str]:
    group = rl.grpo_group_size
    if ADVANTAGES.find(algorithm.advantage).compares_group and group < 2:
        yield (
            f"grpo_group_size ({group}) gives no group to compare a response with, as advantage "
            f"{algorithm.advantage} does: choose --grpo-group-size of at least 2"
        )
    if 0 < algorithm.dual_clip <= 1:
        yield (
            f"dual_clip ({algorithm.dual_clip:g}) must be above 1, or 0 for none: give "
            "--dual-clip 3"
        )
    if not algorithm.needs_critic:
        for name in ("critic_lr", "critic_iterations", "critic_warmup_steps", "critic_value_clip"):
            if not algorithm.is_default(name):
                yield (
                    f"{name} is set, but advantage {algorithm.advantage} has no critic: leave "
                    f"{flag(name)} out, or give --advantage gae"
                )
    elif training.freeze_language_model:
        yield (
            f"advantage {algorithm.advantage} trains a critic beside a policy that "
            "freeze_language_model keeps as it is: drop --freeze-language-model, or choose another "
            "--advantage"
        )


def _kl(algorithm: AlgorithmSection, checkpoint: CheckpointSection) -> Iterator[str]:
    if algorithm.kl_type == "full" and algorithm.rewards_tokens:
        yield (
            "kl_type full needs logits where kl_placement reward has only samples: give "
            "--kl-placement loss, or --kl-type k1"
        )
    if algorithm.kl_target is not None and algorithm.grpo_kl_beta == 0:
        yield (
            "kl_target adapts grpo_kl_beta, which is 0 and stays so: give --grpo-kl-beta 0.01, or "
            "leave --kl-target out"
        )
    if algorithm.ref_reset_interval is None:
        return
    if algorithm.grpo_kl_beta == 0:
        yield (
            "ref_reset_interval is set, but grpo_kl_beta (0) needs no reference: give "
            "--grpo-kl-beta, or leave --ref-reset-interval out"
        )
    interval = checkpoint.save_interval
    if interval is not None and interval % algorithm.ref_reset_interval:
        yield (
            f"save_interval ({interval}) is no multiple of ref_reset_interval "
            f"({algorithm.ref_reset_interval}): no checkpoint in between could be gone on from; "
            f"choose --save-interval {math.ceil(interval / algorithm.ref_reset_interval)} x "
            f"{algorithm.ref_reset_interval}"
        )


def _correction(rollout: RolloutSection, algorithm: AlgorithmSection) -> Iterator[str]:
    uses_ratio = POLICY_LOSSES.find(algorithm.policy_loss).uses_ratio
    if rollout.trains_on_older_weights and algorithm.rollout_correction == "off":
        name = "rollout_lag" if rollout.lag else "rollout_step_tokens"
        correction = "ratio" if uses_ratio else "token"
        yield (
            f"{name} trains on tokens of older weights, and rollout_correction off takes them for "
            f"new ones: give --rollout-correction {correction}, or leave {flag(name)} out"
        )
    if algorithm.rollout_correction == "ratio" and not uses_ratio:
        yield (
            "rollout_correction ratio bounds the ratio of the policy loss, and "
            f"{algorithm.policy_loss} has none: give "
            "--rollout-correction token, or another --policy-loss"
        )
    lower, upper = (
        algorithm.rollout_is_threshold_lower,
        algorithm.rollout_is_threshold,
    )
    if lower > upper:
        yield (
            f"rollout_is_threshold_lower ({lower:g}) is above rollout_is_threshold ({upper:g}): "
            "exchange them"
        )


def _filters(algorithm: AlgorithmSection, rl: RLSection) -> Iterator[str]:
    if algorithm.filter_low >= algorithm.filter_high:
        yield (
            f"filter_low ({algorithm.filter_low:g}) is not below filter_high "
            f"({algorithm.filter_high:g}): no group could be kept; give --filter-low 0.01 "
            "--filter-high 0.99"
        )
    if rl.difficulty_low > rl.difficulty_high:
        yield (
            f"difficulty_low ({rl.difficulty_low:g}) is above difficulty_high "
            f"({rl.difficulty_high:g}): no row could be kept; exchange them"
        )
