"""Rules across fields: a condition each, and the line that the user reads when it is broken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.config.lora import LANGUAGE_TARGETS
from megatron_longrl.config.names import flag
from megatron_longrl.config.secrets import secret_line, secrets_in
from megatron_longrl.errors import ConfigError
from megatron_longrl.models.policy import find_policy
from megatron_longrl.models.text.rotary_rules import rotary_embedding
from megatron_longrl.rewards.rules import reward_rules
from megatron_longrl.rl.rules import curriculum_rules, rl_rules
from megatron_longrl.rollout.rules import sampling_rules

if TYPE_CHECKING:
    from megatron_longrl.config.checkpoint import CheckpointSection
    from megatron_longrl.config.data import DataSection
    from megatron_longrl.config.evaluation import EvaluationSection
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.model_config import ModelConfig
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.config.rollout import RolloutSection
    from megatron_longrl.config.schema import Config, Entry
    from megatron_longrl.config.training import TrainingSection


def validate_layout(config: Config, world_size: int, entry: Entry | None = None) -> None:
    """Check every rule across fields for a run on `world_size` ranks.

    Needs no process group and no file. With `entry`, the rules of that program are checked, too.

    Raises:
        ConfigError: one line that names fields, values and a remedy.
    """
    problem = _first_broken_rule(config, world_size, entry)
    if problem is not None:
        raise ConfigError(problem)


def _first_broken_rule(config: Config, world_size: int, entry: Entry | None) -> str | None:
    """The line of the first rule that does not hold, or None."""
    policy = find_policy(config.model.family)
    rules = [
        _secrets(config.flat()),
        _replicas(config.parallel, world_size),
        _schedule(config, entry),
        _checkpoints(config.checkpoint, entry),
    ]
    if policy is None:
        rules.append(_language_rules(config, world_size, entry))
    else:
        rules.append(_unread(config.model.family, config.changed(policy.unread)))
        if policy.rules is not None:
            rules.append(policy.rules(config, world_size, entry))
    return next((line for rule in rules for line in rule), None)


def _language_rules(config: Config, world_size: int, entry: Entry | None) -> Iterator[str]:
    """The rules of runs whose policy is a language model."""
    yield from _validation(config.evaluation, config.data, entry)
    yield from _language_model(config)
    yield from rotary_embedding(config.rotary, config.training)
    yield from config.family.rules(config.value)
    yield from indivisible(config.value, "num_layers", "pipeline_model_parallel_size")
    yield from _tensor_split(config)
    yield from _sequence_split(config.parallel, config.model)
    yield from _transformer_engine(config, shares_prompts=entry == "rl" and config.rl.shared_prompt)
    yield from _lora(config, entry)
    yield from _rollout_split(config.rollout, config, config.value)
    yield from _rollout_servers(config.rollout, config.parallel, world_size, entry)
    yield from _embedding_cache(config.data, config.trained_parts, entry)
    if config.data.audio_in_video and not config.family.hears_videos:
        yield (
            f"audio_in_video is on, and model_family {config.model.family} hears nothing: leave it "
            "out"
        )
    if entry == "sft":
        yield from _sft_batch(config.training, config.parallel.data_parallel_size(world_size))
    if entry in ("rl", "evaluate"):
        yield from sampling_rules(config)
    if entry == "rl":
        yield from rl_rules(config, world_size)
    if entry in ("rl", "evaluate"):
        yield from reward_rules(config.reward, config.parallel)
    if entry in ("sft", "rl"):
        yield from curriculum_rules(config.data)
    yield from _sequence_length(config, entry)


def _unread(family: str, fields: Sequence[str]) -> Iterator[str]:
    """A line for fields that have been given a value, and that the policy does not read."""
    if fields:
        yield (
            f"model_family {family} does not read {', '.join(fields)}: leave "
            f"{', '.join(map(flag, fields))} out"
        )


def _secrets(values: Mapping[str, Any]) -> Iterator[str]:
    for name in secrets_in(values):
        yield secret_line(name)


SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
"""Fields that a language model cannot do without."""


def _language_model(config: ModelConfig) -> Iterator[str]:
    missing = [name for name in SIZES if not config.value(name)]
    if missing:
        yield (
            f"{', '.join(missing)} not set, which model_family {config.model.family} needs: give "
            f"{flag(missing[0])} ..., or put it into the --config recipe"
        )
        return
    model, training = config.model, config.training
    if "kv_channels" not in model.model_fields_set:
        yield from indivisible(config.value, "hidden_size", "num_attention_heads")
    if model.kv_channels % 2:
        yield (
            f"kv_channels ({model.kv_channels}) is odd, but rotary embedding turns pairs: choose "
            "another --kv-channels, or --hidden-size / --num-attention-heads with an even quotient"
        )
    yield from indivisible(config.value, "num_attention_heads", "num_query_groups")
    if training.seq_length > model.max_position_embeddings:
        yield (
            f"seq_length ({training.seq_length}) exceeds max_position_embeddings "
            f"({model.max_position_embeddings}): lower --seq-length or raise "
            "--max-position-embeddings"
        )


def _replicas(parallel: ParallelSection, world_size: int) -> Iterator[str]:
    replica = parallel.model_parallel_size
    if world_size % replica:
        yield (
            f"world size {world_size} is not divisible by tensor_model_parallel_size "
            f"({parallel.tensor_model_parallel_size}) x context_parallel_size "
            f"({parallel.context_parallel_size}) x pipeline_model_parallel_size "
            f"({parallel.pipeline_model_parallel_size}) = {replica}: "
            f"launch with torchrun on a multiple of {replica} ranks, or lower one of the sizes"
        )


def _tensor_split(config: ModelConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    tensor = parallel.tensor_model_parallel_size
    yield from indivisible(config.value, "num_attention_heads", "tensor_model_parallel_size")
    yield from indivisible(config.value, "ffn_hidden_size", "tensor_model_parallel_size")
    groups = model.num_query_groups
    if groups % tensor and tensor % groups:
        yield (
            f"num_query_groups ({groups}) is neither a multiple nor a divisor of "
            f"tensor_model_parallel_size ({tensor}): change --tensor-model-parallel-size"
        )
    elif (2 * groups * model.kv_channels) % tensor:
        # Ranks beyond the heads share the rows of the fused projection.
        yield (
            f"the keys and values of num_query_groups ({groups}) heads of kv_channels "
            f"({model.kv_channels}) do not split over tensor_model_parallel_size ({tensor}): "
            "lower --tensor-model-parallel-size"
        )
    if parallel.vision_tensor_parallel:
        if tensor == 1:
            yield (
                "vision_tensor_parallel is on, but tensor_model_parallel_size is 1: give "
                "--no-vision-tensor-parallel, or a larger --tensor-model-parallel-size"
            )
        if not config.family.reads_media:
            yield (
                f"vision_tensor_parallel is on, but model_family {model.family} has no "
                "vision tower: give --no-vision-tensor-parallel"
            )
    if parallel.sequence_parallel and tensor == 1:
        yield (
            "sequence_parallel is on, but tensor_model_parallel_size is 1: "
            "give --no-sequence-parallel, or a larger --tensor-model-parallel-size"
        )


def _sequence_split(parallel: ParallelSection, model: ModelSection) -> Iterator[str]:
    """Ulysses splits the heads that a tensor-parallel rank has over the MR-SP ranks."""
    ranks = parallel.context_parallel_size
    if parallel.cp_comm_type != "a2a" or ranks == 1:
        return
    tensor = parallel.tensor_model_parallel_size
    heads = model.num_attention_heads // tensor
    groups = max(1, model.num_query_groups // tensor)
    if heads % ranks or (groups % ranks and ranks % groups):
        yield (
            f"cp_comm_type a2a cannot split {heads} attention heads in {groups} query groups (of "
            f"each tensor-parallel rank) over context_parallel_size ({ranks}): give --cp-comm-type "
            "all_gather or p2p, or another --context-parallel-size"
        )


def _transformer_engine(config: ModelConfig, *, shares_prompts: bool) -> Iterator[str]:
    """Yield violations of the limits of Transformer Engine's attention, which also takes trees for
    causal sequences.

    Read in version 2.9, pytorch/attention/dot_product_attention/{utils,context_parallel}.py: no
    attention for fp32 over several ranks, heads of a multiple of 8 channels, and Ulysses only where
    ranks divide the query groups as well.
    """
    model, training, parallel = config.model, config.training, config.parallel
    if model.transformer_impl != "transformer_engine":
        return
    local = "--transformer-impl local"
    if shares_prompts:
        yield (
            "transformer_impl transformer_engine attends to causal rows only, but shared_prompt "
            f"makes a tree of a prompt and its responses: give --no-shared-prompt, or {local}"
        )
    if training.use_sequence_packing:
        yield (
            "transformer_impl transformer_engine attends to causal rows only, but "
            f"use_sequence_packing fills rows with several samples: leave it out, or give {local}"
        )
    ranks = parallel.context_parallel_size
    if ranks == 1:
        return
    if not training.bf16:
        yield (
            f"transformer_impl transformer_engine splits sequences over context_parallel_size "
            f"({ranks}) ranks in bf16 only: give --bf16, or {local}"
        )
    if model.kv_channels % 8:
        yield (
            f"transformer_impl transformer_engine splits sequences over context_parallel_size "
            f"({ranks}) ranks only for kv_channels of a multiple of 8, not {model.kv_channels}: "
            f"give {local}"
        )
    groups = max(1, model.num_query_groups // parallel.tensor_model_parallel_size)
    if parallel.cp_comm_type == "a2a" and groups % ranks:
        yield (
            f"cp_comm_type a2a of transformer_impl transformer_engine cannot split {groups} query "
            f"groups (of each tensor-parallel rank) over context_parallel_size ({ranks}): give "
            f"--cp-comm-type all_gather or p2p, or {local}"
        )


def _lora(config: ModelConfig, entry: Entry | None) -> Iterator[str]:
    """Adapters are trained: evaluation merges those of its checkpoint."""
    if not config.lora.rank or entry == "evaluate":
        return
    if config.lora.alpha == 0:
        yield (
            f"lora_alpha ({config.lora.alpha}) makes adapters add nothing: leave it out, or give "
            "--lora-alpha N"
        )
    for name in ("lora_parts", "lora_target_modules"):
        if not config.value(name):
            yield f"{name} is empty, which lora_rank ({config.lora.rank}) needs: give {flag(name)}"
    drawing = [name for name in config.lora.target_modules if name not in LANGUAGE_TARGETS]
    if drawing:
        yield (
            f"lora_target_modules {', '.join(drawing)} are layers of models that draw: leave them "
            "out"
        )
    for part in config.lora.parts:
        if part not in config.family.parts:
            yield (
                f"lora_parts names {part}, which model_family {config.model.family} has not: give "
                f"--lora-parts with some of {', '.join(config.family.parts)}"
            )
        elif config.value(f"freeze_{part}"):
            yield (
                f"freeze_{part} is on, but lora_parts trains adapters of {part}: "
                "leave it out of one of the two"
            )
    if "language_model" in config.lora.parts and config.model.transformer_impl != "local":
        yield (
            f"transformer_impl {config.model.transformer_impl} knows no adapters: give "
            "--transformer-impl local, or --lora-rank 0"
        )


def _rollout_split(
    rollout: RolloutSection, config: ModelConfig, value: Callable[[str], Any]
) -> Iterator[str]:
    size = rollout.tensor_parallel_size
    if size is None:
        return
    replica = config.parallel.model_parallel_size
    if replica % size and rollout.engine == "colocated":
        yield (
            f"rollout_tensor_parallel_size ({size}) does not divide the {replica} ranks of a "
            "model replica: choose a divisor, or leave it out"
        )
    yield from indivisible(value, "num_attention_heads", "rollout_tensor_parallel_size")
    yield from indivisible(value, "ffn_hidden_size", "rollout_tensor_parallel_size")
    groups = config.model.num_query_groups
    if groups % size and size % groups:
        yield (
            f"num_query_groups ({groups}) is neither a multiple nor a divisor of "
            f"rollout_tensor_parallel_size ({size}): choose another one, or leave it out"
        )


def _rollout_servers(
    rollout: RolloutSection, parallel: ParallelSection, world_size: int, entry: Entry | None
) -> Iterator[str]:
    addresses = rollout.server_address
    if entry == "serve":
        if len(addresses) > 1:
            yield (
                f"rollout_server_address names {len(addresses)} addresses, but a server listens on "
                "one: give --rollout-server-address HOST:PORT"
            )
        return
    if addresses and rollout.engine != "server":
        yield (
            f"rollout_server_address is set, but rollout_engine is {rollout.engine}: give "
            "--rollout-engine server, or leave --rollout-server-address out"
        )
    replicas = parallel.data_parallel_size(world_size)
    if addresses and entry in ("rl", "evaluate") and len(addresses) != replicas:
        yield (
            f"rollout_server_address names {len(addresses)} servers for {replicas} model replicas: "
            "give --rollout-server-address one HOST:PORT for each"
        )


def _schedule(config: ModelConfig, entry: Entry | None) -> Iterator[str]:
    if entry in ("evaluate", "serve"):
        return
    if not config.trained_parts:
        switches = ", ".join(f"freeze_{part}" for part in config.family.parts)
        yield (
            f"nothing is left to train, because these are on: {switches}; drop one of them, e.g. "
            "--no-freeze-language-model"
        )
    if config.training.lr_warmup_iters and config.training.lr_warmup_fraction is not None:
        yield (
            f"lr_warmup_iters ({config.training.lr_warmup_iters}) and lr_warmup_fraction "
            f"({config.training.lr_warmup_fraction}) are both set: give only one of them"
        )
    if config.training.lr_decay_iters <= config.training.lr_warmup_steps:
        yield (
            f"warmup of {config.training.lr_warmup_steps} steps leaves nothing of lr_decay_iters "
            f"({config.training.lr_decay_iters}): lower --lr-warmup-iters or --lr-warmup-fraction"
        )
    if "lr" in config.training.model_fields_set and config.training.min_lr > config.training.lr:
        yield f"min_lr ({config.training.min_lr}) exceeds lr ({config.training.lr}): lower --min-lr"


def _checkpoints(checkpoint: CheckpointSection, entry: Entry | None) -> Iterator[str]:
    if entry in ("evaluate", "serve"):
        return
    if checkpoint.save_interval is not None and checkpoint.save is None:
        yield f"save_interval ({checkpoint.save_interval}) is set without save: give --save FOLDER"
    if checkpoint.async_save and checkpoint.save is None:
        yield "async_save is on without save: give --save FOLDER"
    if checkpoint.finetune and checkpoint.load is None:
        yield "finetune is on without load: give --load FOLDER, or use --pretrained-checkpoint"


def _validation(
    evaluation: EvaluationSection, data: DataSection, entry: Entry | None
) -> Iterator[str]:
    if entry in ("evaluate", "serve"):
        return
    for name in ("interval", "at_start"):
        if getattr(evaluation, name) and not data.valid_data_path:
            yield f"eval_{name} is set without valid_data_path: give --valid-data-path FILE"


def _embedding_cache(
    data: DataSection, trained_parts: frozenset[str], entry: Entry | None
) -> Iterator[str]:
    if data.embedding_cache_dir is None:
        if not data.is_default("embedding_cache_gib"):
            yield (
                f"embedding_cache_gib ({data.embedding_cache_gib:g}) is set without "
                "embedding_cache_dir: give --embedding-cache-dir FOLDER"
            )
        return
    trained = sorted(trained_parts - {"language_model"}, reverse=True)
    if entry in ("sft", "rl") and trained:
        switches = " ".join(flag(f"freeze_{part}") for part in trained)
        yield (
            "embedding_cache_dir keeps the embeddings of a frozen encoder, and this run trains it: "
            f"give {switches}, or leave --embedding-cache-dir out"
        )


def _sft_batch(training: TrainingSection, replicas: int) -> Iterator[str]:
    step, batch = training.micro_batch_size * replicas, training.samples_per_step(replicas)
    if batch % step:
        yield (
            f"global_batch_size ({batch}) is not divisible by micro_batch_size "
            f"({training.micro_batch_size}) x data-parallel size ({replicas}): "
            f"choose a multiple of {step}, e.g. --global-batch-size "
            f"{math.ceil(batch / step) * step}"
        )


def _sequence_length(config: Config, entry: Entry | None) -> Iterator[str]:
    """The tokens that a full-length video needs at least; longer questions are found per row."""
    if config.data.video_frames is None or not config.family.tokens_per_frame:
        return
    frames = config.data.video_frames // config.family.frames_per_step
    per_frame = config.family.tokens_per_frame + 1  # The newline after each frame.
    # At least one response; a group of more takes as many rows as it needs.
    responses = 0 if entry in (None, "sft") else 1
    response_tokens = responses * config.rollout.max_tokens
    needed = frames * per_frame + max(1, response_tokens)
    # Rows as long as the data need hold the videos that there are, which may be short.
    most = (
        config.model.max_position_embeddings
        if config.training.seq_length_from_data
        else config.training.seq_length
    )
    if needed <= most:
        return
    answers = f" + {responses} x rollout_max_tokens ({config.rollout.max_tokens})"
    room = (most - max(1, response_tokens)) // per_frame
    fewer = f"--video-frames of at most {room}" if room >= 1 else "fewer or shorter responses"
    yield (
        f"video_frames ({frames}) x {per_frame} tokens{answers if responses else ''} needs "
        f"{needed} tokens, which exceeds seq_length ({most}): "
        f"give --seq-length of at least {needed} plus the question's tokens, or {fewer}"
    )
