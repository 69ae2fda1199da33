"""Rules across fields that hold for every flow-matching model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_longrl.config.algorithm_parts import ADVANTAGES
from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.config.names import flag
from megatron_longrl.config.presets import ALGORITHMS, algorithm_names
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.rewards.registry import names_that_read, reads
from megatron_longrl.rewards.rules import model_rules

if TYPE_CHECKING:
    from megatron_longrl.config import Config, Entry, ModelConfig
    from megatron_longrl.config.algorithm import AlgorithmSection
    from megatron_longrl.config.rewards import RewardSection
    from megatron_longrl.config.rl import RLSection
    from megatron_longrl.config.training import TrainingSection


UNREAD = (
    *("rotary", "rollout", "records"),
    *("policy_loss", "loss_aggregation", "dual_clip", "grpo_entropy_term_weight"),
    *("kl_type", "kl_target", "kl_horizon", "ref_reset_interval"),
    *("rollout_correction", "rollout_is_threshold", "rollout_is_threshold_lower"),
    *("dynamic_sampling", "dynamic_sampling_max_tries"),
    *("filter_metric", "filter_low", "filter_high"),
    *("overlong_shaping", "overlong_buffer", "overlong_penalty", "mask_overlong"),
    *("gae_gamma", "gae_lambda", "critic_lr", "critic_iterations", "critic_warmup_steps"),
    *("critic_value_clip", "shuffled_frames_bonus", "shuffled_frames_ratio", "shared_prompt"),
    *("difficulty_field", "difficulty_low", "difficulty_high"),
    *("judge_url", "judge_model", "judge_prompt", "judge_temperature", "judge_cache"),
    *("eval_temperature", "eval_top_p", "eval_top_k", "eval_min_p", "eval_max_tokens"),
    *("chat_template", "system_prompt", "prompt_template"),
    *("audio_in_video", "missing_audio", "video_frames_curriculum", "embedding_cache_dir"),
    *("video_frames", "video_fps", "encoder_chunk_frames", "decode_buffer_mib"),
    *("embedding_store_gib", "embedding_cache_gib", "media_timeout", "strict_data", "max_skipped"),
    *("tokenizer_type", "tokenizer_model", "vocab_size", "make_vocab_size_divisible_by"),
    *("max_position_embeddings", "add_qkv_bias", "untie_embeddings_and_output_weights"),
    *("use_sequence_packing", "vision_tensor_parallel", "mrsp_mode", "mrsp_hardware_profile"),
    "cp_comm_type",
)
"""Sections and fields of language models and of videos that are read, which no flow-matching model
uses."""


@dataclass(frozen=True)
class FlowRules:
    """The rules of a family, see :attr:`~megatron_longrl.models.policy.Policy.rules`."""

    needed: tuple[str, ...]
    """Fields that a checkpoint or a recipe has to bring."""
    own: Callable[[ModelConfig], Iterator[str]]
    """A line for every rule of the family alone that does not hold."""
    adapted: tuple[str, ...] = ()
    """Layers that may have LoRA adapters."""

    def __call__(self, config: Config, world_size: int, entry: Entry | None) -> Iterator[str]:
        """A line for every rule across fields that does not hold."""
        missing = [flag(name) for name in self.needed if not config.value(name)]
        if missing:
            yield (
                f"{', '.join(missing)} not set: give --pretrained-checkpoint FOLDER, of diffusers "
                "or of a run, which brings them, or put them into the --config recipe"
            )
            return
        yield from _heads(config)
        yield from self.own(config)
        yield from _layout(config)
        if entry in ("sft", "rl"):
            yield from _adapters(config, self.adapted)
        if entry in ("evaluate", "generate") and not config.checkpoint.starts_from:
            yield "no weights: give --load RUN, or --pretrained-checkpoint FOLDER"
        if entry == "evaluate":
            yield from _rewards(config.reward)
        replicas = config.parallel.data_parallel_size(world_size)
        family = config.family_as(FlowSection)
        if entry == "rl":
            yield from rl_flow_rules(
                *(family, config.algorithm, config.rl, config.reward, config.training, replicas)
            )
        if entry == "sft":
            yield from sft_flow_rules(config.training, replicas)


def _heads(config: ModelConfig) -> Iterator[str]:
    model = config.model
    if model.num_attention_heads * model.kv_channels != model.hidden_size:
        yield (
            f"num_attention_heads ({model.num_attention_heads}) x kv_channels "
            f"({model.kv_channels}) is not hidden_size ({model.hidden_size}): leave --kv-channels "
            "out"
        )
    if model.num_query_groups != model.num_attention_heads:
        yield (
            f"num_query_groups: every head of {model.family} has its own keys: leave "
            "--num-query-groups out"
        )
    yield from indivisible(config.value, "num_attention_heads", "tensor_model_parallel_size")


def _adapters(config: ModelConfig, adapted: Sequence[str]) -> Iterator[str]:
    lora = config.lora
    if not lora.rank:
        return
    if others := [name for name in lora.target_modules if name not in adapted]:
        yield (
            f"lora_target_modules {', '.join(others)}: {config.model.family} has no such layers: "
            f"choose --lora-target-modules from {', '.join(adapted)}"
        )
    if lora.alpha == 0:
        yield "lora_alpha (0) makes adapters add nothing: leave it out, or give --lora-alpha N"
    if not lora.target_modules:
        yield "lora_target_modules is empty: leave it out, or name some layers"
    if lora.parts != ("language_model",):
        yield "lora_parts: one part of a flow-matching model is trained: leave --lora-parts out"


def _layout(config: ModelConfig) -> Iterator[str]:
    parallel, remedy = config.parallel, "give --tensor-model-parallel-size, --context-parallel-size"
    name = config.model.family
    if parallel.pipeline_model_parallel_size > 1:
        yield (
            f"pipeline_model_parallel_size ({parallel.pipeline_model_parallel_size}): {name} has "
            f"one pipeline stage: {remedy} or more replicas instead"
        )
    if parallel.sequence_parallel:
        yield f"sequence_parallel: {name} shards tokens over MR-SP ranks alone: {remedy} instead"
    if config.training.recompute_granularity == "selective":
        yield (
            f"recompute_granularity selective: {name} knows whole layers: give full, or leave "
            "it out"
        )


def rl_flow_rules(
    section: FlowSection,
    algorithm: AlgorithmSection,
    rl: RLSection,
    reward: RewardSection,
    training: TrainingSection,
    replicas: int,
) -> Iterator[str]:
    """A line for every rule of reinforcement learning that does not hold."""
    if ALGORITHMS.find(algorithm.rl_algorithm).flow is None:
        yield (
            f"rl_algorithm {algorithm.rl_algorithm} is for language models: give --rl-algorithm "
            f"{', '.join(algorithm_names(flow=True))}"
        )
        return
    yield from _sampling(section, algorithm)
    yield from _rewards(reward)
    yield from _batches(rl, training.global_batch_size, training.micro_batch_size, replicas)
    estimator = ADVANTAGES.find(algorithm.advantage)
    if estimator.extra_generations:
        yield (
            f"advantage {algorithm.advantage} needs extra generations, which pictures do not "
            "have: choose another --advantage, such as grpo_batch_std"
        )
    compares = estimator.compares_group
    if compares and rl.grpo_group_size < 2:
        yield (
            f"grpo_group_size ({rl.grpo_group_size}) gives no group to compare a picture "
            "with: choose --grpo-group-size of at least 2"
        )


def sft_flow_rules(training: TrainingSection, replicas: int) -> Iterator[str]:
    """A line for every rule of pre-training that does not hold."""
    step = training.micro_batch_size * replicas
    batch = training.global_batch_size or step
    if batch % step:
        yield (
            f"global_batch_size ({batch}) is not divisible by micro_batch_size x data-parallel "
            f"size ({step}): choose a multiple, e.g. --global-batch-size "
            f"{math.ceil(batch / step) * step}"
        )


def _sampling(section: FlowSection, algorithm: AlgorithmSection) -> Iterator[str]:
    if section.sampling_steps < 2:
        yield (
            f"sampling_steps ({section.sampling_steps}) leaves no step to train, as the last one "
            "is deterministic: give --sampling-steps of at least 2"
        )
    if section.flow_sampler == "cps" and section.noise_level is None:
        yield "flow_sampler cps has no default noise level: give --noise-level, such as 0.8"
    level = section.noise_level
    if section.flow_sampler == "cps" and level is not None and level > 1:
        yield f"noise_level ({level}) of cps is above 1: choose --noise-level from 0 to 1"
    if section.trained_steps_fraction == 0:
        yield "trained_steps_fraction (0) trains nothing: give --trained-steps-fraction above 0"
    if algorithm.needs_critic or algorithm.rewards_tokens:
        yield (
            f"advantage {algorithm.advantage} and kl_placement {algorithm.kl_placement}: a picture "
            "has no tokens that could have values or rewards: leave them out"
        )


def _rewards(reward: RewardSection) -> Iterator[str]:
    names = [text.partition("=")[0] for text in reward.rewards]
    of_text = [name for name in names if reads(name) != "picture"]
    if of_text:
        others = ", ".join(names_that_read("picture"))
        yield (
            f"rewards {', '.join(of_text)} read text: give --reward-function FILE.py:NAME, whose "
            f"function takes an image, or --rewards {others}"
        )
    yield from model_rules(reward)


def _batches(rl: RLSection, size: int | None, micro_batch: int, replicas: int) -> Iterator[str]:
    prompts, pictures = rl.grpo_prompts_per_step, rl.responses_per_step
    if prompts < 1 or prompts % replicas:
        next_one = max(1, math.ceil(prompts / replicas)) * replicas
        yield (
            f"grpo_prompts_per_step ({prompts}) is no multiple of the data-parallel size "
            f"({replicas}): choose a multiple, e.g. --grpo-prompts-per-step {next_one}"
        )
        return
    update = size or pictures
    if pictures % update or update % (replicas * micro_batch):
        yield (
            f"global_batch_size ({update}) cuts the {pictures} pictures of a step not into equal "
            f"updates of whole micro-batches ({micro_batch}) for {replicas} replicas: choose a "
            f"multiple of {replicas * micro_batch} that divides {pictures}, or another "
            "--micro-batch-size"
        )
