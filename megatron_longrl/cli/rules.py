"""Rules across fields: a condition each, and the line that the user reads when it is broken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_longrl.config.model import TEXT_FAMILIES
from megatron_longrl.config.names import flag
from megatron_longrl.config.secrets import secret_line, secrets_in
from megatron_longrl.errors import UserError
from megatron_longrl.models.family import FAMILIES
from megatron_longrl.models.policy import POLICIES, find_policy
from megatron_longrl.models.text.rotary_rules import rotary_embedding
from megatron_longrl.models.vila.rules import vila_pictures
from megatron_longrl.rewards.rules import reward_rules
from megatron_longrl.rl.rules import curriculum_rules, rl_rules
from megatron_longrl.rollout.rules import sampling_rules

if TYPE_CHECKING:
    from megatron_longrl.config.schema import Config, Entry


def validate_layout(config: Config, world_size: int, entry: Entry | None = None) -> None:
    """Check every rule across fields for a run on `world_size` ranks.

    Needs no process group and no file. With `entry`, what it needs is checked, too.

    Raises:
        UserError: one line that names fields, values and a remedy.
    """
    problem = _first_broken_rule(config, world_size, entry)
    if problem is not None:
        raise UserError(problem)


def _first_broken_rule(config: Config, world_size: int, entry: Entry | None) -> str | None:
    """The line of the first rule that does not hold, or None."""
    policy = find_policy(config.model_family)
    rules = (
        _names(config),
        _secrets(config),
        _replicas(config, world_size),
        _schedule(config, entry),
        _checkpoints_and_validation(config, entry),
        _language_rules(config, world_size, entry)
        if policy is None
        else policy.rules(config, world_size, entry),
    )
    return next((line for rule in rules for line in rule), None)


def _names(config: Config) -> Iterator[str]:
    if config.model_family not in POLICIES:
        problem = FAMILIES.unknown(config.model_family)
        if problem is not None:
            yield f"model_family: {problem}"


def _language_rules(config: Config, world_size: int, entry: Entry | None) -> Iterator[str]:
    """The rules of runs whose policy is a language model."""
    yield from _language_model(config)
    yield from rotary_embedding(config)
    yield from _vision_tower(config)
    yield from vila_pictures(config)
    yield from _pipeline_stages(config)
    yield from _tensor_split(config)
    yield from _sequence_split(config)
    yield from _transformer_engine(config, entry)
    yield from _lora(config, entry)
    yield from _rollout_split(config)
    yield from _rollout_servers(config, world_size, entry)
    yield from _embedding_cache(config, entry)
    if entry == "sft":
        yield from _sft_batch(config, world_size)
    if entry in ("rl", "evaluate"):
        yield from sampling_rules(config)
    if entry == "rl":
        yield from rl_rules(config, world_size)
    if entry in ("rl", "evaluate"):
        yield from reward_rules(config)
    if entry in ("sft", "rl"):
        yield from curriculum_rules(config)
    yield from _sequence_length(config, entry)


def _indivisible(config: Config, field: str, by: str) -> Iterator[str]:
    """A line when field `by` does not divide field `field`; the remedy lists the divisors."""
    value, divisor = getattr(config, field), getattr(config, by)
    if value % divisor:
        choices = [str(d) for d in range(1, min(value, 64) + 1) if value % d == 0]
        yield (
            f"{field} ({value}) is not divisible by {by} ({divisor}): "
            f"choose {flag(by)} from {', '.join(choices)}"
        )


def _secrets(config: Config) -> Iterator[str]:
    for name in secrets_in(config.model_dump()):
        yield secret_line(name)


SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
"""Fields that a language model cannot do without."""


def _language_model(config: Config) -> Iterator[str]:
    missing = [name for name in SIZES if not getattr(config, name)]
    if missing:
        yield (
            f"{', '.join(missing)} not set, which model_family {config.model_family} needs: give "
            f"{flag(missing[0])} ..., or put it into the --config recipe"
        )
        return
    if "kv_channels" not in config.model_fields_set:
        yield from _indivisible(config, "hidden_size", "num_attention_heads")
    if config.kv_channels % 2:
        yield (
            f"kv_channels ({config.kv_channels}) is odd, but rotary embedding turns pairs: choose "
            "another --kv-channels, or --hidden-size / --num-attention-heads with an even quotient"
        )
    yield from _indivisible(config, "num_attention_heads", "num_query_groups")
    if config.seq_length > config.max_position_embeddings:
        yield (
            f"seq_length ({config.seq_length}) exceeds max_position_embeddings "
            f"({config.max_position_embeddings}): lower --seq-length or raise "
            "--max-position-embeddings"
        )


VISION_FIELDS = (
    "vision_image_size",
    "vision_patch_size",
    "vision_hidden_size",
    "vision_num_layers",
    "vision_num_attention_heads",
    "vision_ffn_hidden_size",
)
"""Sizes that a family with a vision tower cannot do without."""


def _vision_tower(config: Config) -> Iterator[str]:
    given = [name for name in VISION_FIELDS if getattr(config, name)]
    if config.model_family in TEXT_FAMILIES:
        if given:
            yield (
                f"{given[0]} is set, but model_family {config.model_family} reads text only: "
                f"leave {flag(given[0])} out, or choose another --model-family"
            )
        return
    is_square = config.model_family == "vila"
    needed = [name for name in VISION_FIELDS if is_square or name != "vision_image_size"]
    missing = [name for name in needed if name not in given]
    if missing:
        yield (
            f"{', '.join(missing)} not set, which model_family {config.model_family} needs: give "
            f"{flag(missing[0])} ..., or put it into the --config recipe"
        )
        return
    if is_square:
        yield from _indivisible(config, "vision_image_size", "vision_patch_size")
    yield from _indivisible(config, "vision_hidden_size", "vision_num_attention_heads")
    layers, feature = config.vision_num_layers, config.vision_feature_layer
    if is_square and (feature == 0 or not -layers <= feature <= layers):
        yield (
            f"vision_feature_layer ({feature}) is the output of no layer of a tower with "
            f"vision_num_layers ({layers}): choose --vision-feature-layer from 1 to {layers}, or "
            f"from -1 to -{layers}"
        )


def _replicas(config: Config, world_size: int) -> Iterator[str]:
    replica = config.model_parallel_size
    if world_size % replica:
        yield (
            f"world size {world_size} is not divisible by tensor_model_parallel_size "
            f"({config.tensor_model_parallel_size}) x context_parallel_size "
            f"({config.context_parallel_size}) x pipeline_model_parallel_size "
            f"({config.pipeline_model_parallel_size}) = {replica}: "
            f"launch with torchrun on a multiple of {replica} ranks, or lower one of the sizes"
        )


def _pipeline_stages(config: Config) -> Iterator[str]:
    yield from _indivisible(config, "num_layers", "pipeline_model_parallel_size")
    levels = len(config.vision_deepstack_layers)
    stages = config.pipeline_model_parallel_size
    if levels > config.num_layers // stages:
        yield (
            f"vision_deepstack_layers names {levels}, which the first pipeline stage adds, but "
            f"num_layers ({config.num_layers}) / pipeline_model_parallel_size ({stages}) is only "
            f"{config.num_layers // stages}: lower --pipeline-model-parallel-size"
        )


def _tensor_split(config: Config) -> Iterator[str]:
    tensor = config.tensor_model_parallel_size
    yield from _indivisible(config, "num_attention_heads", "tensor_model_parallel_size")
    yield from _indivisible(config, "ffn_hidden_size", "tensor_model_parallel_size")
    groups = config.num_query_groups
    if groups % tensor and tensor % groups:
        yield (
            f"num_query_groups ({groups}) is neither a multiple nor a divisor of "
            f"tensor_model_parallel_size ({tensor}): change --tensor-model-parallel-size"
        )
    elif (2 * groups * config.kv_channels) % tensor:
        # Ranks beyond the heads share the rows of the fused projection.
        yield (
            f"the keys and values of num_query_groups ({groups}) heads of kv_channels "
            f"({config.kv_channels}) do not split over tensor_model_parallel_size ({tensor}): "
            "lower --tensor-model-parallel-size"
        )
    if config.vision_tensor_parallel:
        if tensor == 1:
            yield (
                "vision_tensor_parallel is on, but tensor_model_parallel_size is 1: give "
                "--no-vision-tensor-parallel, or a larger --tensor-model-parallel-size"
            )
        if config.model_family in TEXT_FAMILIES:
            yield (
                f"vision_tensor_parallel is on, but model_family {config.model_family} has no "
                "vision tower: give --no-vision-tensor-parallel"
            )
        yield from _indivisible(config, "vision_num_attention_heads", "tensor_model_parallel_size")
        yield from _indivisible(config, "vision_ffn_hidden_size", "tensor_model_parallel_size")
    if config.sequence_parallel and tensor == 1:
        yield (
            "sequence_parallel is on, but tensor_model_parallel_size is 1: "
            "give --no-sequence-parallel, or a larger --tensor-model-parallel-size"
        )


def _sequence_split(config: Config) -> Iterator[str]:
    """Ulysses splits the heads that a tensor-parallel rank has over the MR-SP ranks."""
    ranks = config.context_parallel_size
    if config.cp_comm_type != "a2a" or ranks == 1:
        return
    tensor = config.tensor_model_parallel_size
    heads = config.num_attention_heads // tensor
    groups = max(1, config.num_query_groups // tensor)
    if heads % ranks or (groups % ranks and ranks % groups):
        yield (
            f"cp_comm_type a2a cannot split {heads} attention heads in {groups} query groups (of "
            f"each tensor-parallel rank) over context_parallel_size ({ranks}): give --cp-comm-type "
            "all_gather or p2p, or another --context-parallel-size"
        )


def _transformer_engine(config: Config, entry: Entry | None) -> Iterator[str]:
    """What Transformer Engine's attention refuses, or would take for plain causal rows.

    Read in version 2.9, pytorch/attention/dot_product_attention/{utils,context_parallel}.py: no
    attention for fp32 over several ranks, heads of a multiple of 8 channels, and Ulysses only where
    ranks divide the query groups as well.
    """
    if config.transformer_impl != "transformer_engine":
        return
    local = "--transformer-impl local"
    if entry == "rl" and config.shared_prompt:
        yield (
            "transformer_impl transformer_engine attends to causal rows only, but shared_prompt "
            f"makes a tree of a prompt and its responses: give --no-shared-prompt, or {local}"
        )
    if config.use_sequence_packing:
        yield (
            "transformer_impl transformer_engine attends to causal rows only, but "
            f"use_sequence_packing fills rows with several samples: leave it out, or give {local}"
        )
    ranks = config.context_parallel_size
    if ranks == 1:
        return
    if not config.bf16:
        yield (
            f"transformer_impl transformer_engine splits sequences over context_parallel_size "
            f"({ranks}) ranks in bf16 only: give --bf16, or {local}"
        )
    if config.kv_channels % 8:
        yield (
            f"transformer_impl transformer_engine splits sequences over context_parallel_size "
            f"({ranks}) ranks only for kv_channels of a multiple of 8, not {config.kv_channels}: "
            f"give {local}"
        )
    groups = max(1, config.num_query_groups // config.tensor_model_parallel_size)
    if config.cp_comm_type == "a2a" and groups % ranks:
        yield (
            f"cp_comm_type a2a of transformer_impl transformer_engine cannot split {groups} query "
            f"groups (of each tensor-parallel rank) over context_parallel_size ({ranks}): give "
            f"--cp-comm-type all_gather or p2p, or {local}"
        )


def _lora(config: Config, entry: Entry | None) -> Iterator[str]:
    """Adapters are trained: evaluation merges those of its checkpoint."""
    if not config.lora_rank or entry == "evaluate":
        return
    if config.lora_alpha == 0:
        yield (
            f"lora_alpha ({config.lora_alpha}) makes adapters add nothing: leave it out, or give "
            "--lora-alpha N"
        )
    for name in ("lora_parts", "lora_target_modules"):
        if not getattr(config, name):
            yield f"{name} is empty, which lora_rank ({config.lora_rank}) needs: give {flag(name)}"
    for part in config.lora_parts:
        if getattr(config, f"freeze_{part}"):
            yield (
                f"freeze_{part} is on, but lora_parts trains adapters of {part}: "
                "leave it out of one of the two"
            )
        if part != "language_model" and config.model_family in TEXT_FAMILIES:
            yield (
                f"lora_parts names {part}, but model_family {config.model_family} reads text only: "
                "give --lora-parts language_model"
            )
    if "language_model" in config.lora_parts and config.transformer_impl != "local":
        yield (
            f"transformer_impl {config.transformer_impl} knows no adapters: give "
            "--transformer-impl local, or --lora-rank 0"
        )


def _rollout_split(config: Config) -> Iterator[str]:
    size = config.rollout_tensor_parallel_size
    if size is None:
        return
    replica = config.model_parallel_size
    if replica % size and config.rollout_engine == "colocated":
        yield (
            f"rollout_tensor_parallel_size ({size}) does not divide the {replica} ranks of a "
            "model replica: choose a divisor, or leave it out"
        )
    yield from _indivisible(config, "num_attention_heads", "rollout_tensor_parallel_size")
    yield from _indivisible(config, "ffn_hidden_size", "rollout_tensor_parallel_size")
    groups = config.num_query_groups
    if groups % size and size % groups:
        yield (
            f"num_query_groups ({groups}) is neither a multiple nor a divisor of "
            f"rollout_tensor_parallel_size ({size}): choose another one, or leave it out"
        )


def _rollout_servers(config: Config, world_size: int, entry: Entry | None) -> Iterator[str]:
    addresses = config.rollout_server_address
    if entry == "serve":
        if len(addresses) > 1:
            yield (
                f"rollout_server_address names {len(addresses)} addresses, but a server listens on "
                "one: give --rollout-server-address HOST:PORT"
            )
        return
    if addresses and config.rollout_engine != "server":
        yield (
            f"rollout_server_address is set, but rollout_engine is {config.rollout_engine}: give "
            "--rollout-engine server, or leave --rollout-server-address out"
        )
    replicas = config.data_parallel_size(world_size)
    if addresses and entry in ("rl", "evaluate") and len(addresses) != replicas:
        yield (
            f"rollout_server_address names {len(addresses)} servers for {replicas} model replicas: "
            "give --rollout-server-address one HOST:PORT for each"
        )


def _schedule(config: Config, entry: Entry | None) -> Iterator[str]:
    if entry in ("evaluate", "serve"):
        return
    if config.freeze_vision_tower and config.freeze_projector and config.freeze_language_model:
        yield (
            "freeze_vision_tower, freeze_projector and freeze_language_model are all on, "
            "nothing is left to train: drop one of them, e.g. --no-freeze-language-model"
        )
    if config.lr_warmup_iters and config.lr_warmup_fraction is not None:
        yield (
            f"lr_warmup_iters ({config.lr_warmup_iters}) and lr_warmup_fraction "
            f"({config.lr_warmup_fraction}) are both set: give only one of them"
        )
    if config.lr_decay_iters <= config.lr_warmup_steps:
        yield (
            f"warmup of {config.lr_warmup_steps} steps leaves nothing of lr_decay_iters "
            f"({config.lr_decay_iters}): lower --lr-warmup-iters or --lr-warmup-fraction"
        )
    if "lr" in config.model_fields_set and config.min_lr > config.lr:
        yield f"min_lr ({config.min_lr}) exceeds lr ({config.lr}): lower --min-lr"


def _checkpoints_and_validation(config: Config, entry: Entry | None) -> Iterator[str]:
    if entry in ("evaluate", "serve"):
        return
    if config.save_interval is not None and config.save is None:
        yield f"save_interval ({config.save_interval}) is set without save: give --save FOLDER"
    if config.async_save and config.save is None:
        yield "async_save is on without save: give --save FOLDER"
    if config.finetune and config.load is None:
        yield "finetune is on without load: give --load FOLDER, or use --pretrained-checkpoint"
    for name in ("eval_interval", "eval_at_start"):
        if getattr(config, name) and not config.valid_data_path:
            yield f"{name} is set without valid_data_path: give --valid-data-path FILE"


def _embedding_cache(config: Config, entry: Entry | None) -> Iterator[str]:
    if config.embedding_cache_dir is None:
        if config.embedding_cache_gib != type(config).model_fields["embedding_cache_gib"].default:
            yield (
                f"embedding_cache_gib ({config.embedding_cache_gib:g}) is set without "
                "embedding_cache_dir: give --embedding-cache-dir FOLDER"
            )
        return
    is_frozen = config.freeze_vision_tower and config.freeze_projector
    if entry in ("sft", "rl") and not is_frozen:
        yield (
            "embedding_cache_dir keeps what a frozen encoder makes, and this run trains it: give "
            "--freeze-vision-tower --freeze-projector, or leave --embedding-cache-dir out"
        )


def _sft_batch(config: Config, world_size: int) -> Iterator[str]:
    replicas = config.data_parallel_size(world_size)
    step = config.micro_batch_size * replicas
    batch = config.samples_per_step(world_size, "sft")
    if batch % step:
        yield (
            f"global_batch_size ({batch}) is not divisible by micro_batch_size "
            f"({config.micro_batch_size}) x data-parallel size ({replicas}): "
            f"choose a multiple of {step}, e.g. --global-batch-size "
            f"{math.ceil(batch / step) * step}"
        )


def _sequence_length(config: Config, entry: Entry | None) -> Iterator[str]:
    """The tokens that a full-length video needs at least; longer questions are found per row."""
    if config.video_frames is None or not config.tokens_per_frame:
        return
    frames = config.video_frames // config.vision_temporal_pooling
    per_frame = config.tokens_per_frame + 1  # The newline after each frame.
    # At least one response; a group of more takes as many rows as it needs.
    responses = 0 if entry in (None, "sft") else 1
    response_tokens = responses * config.rollout_max_tokens
    needed = frames * per_frame + max(1, response_tokens)
    # Rows as long as the data need hold the videos that there are, which may be short.
    most = config.max_position_embeddings if config.seq_length_from_data else config.seq_length
    if needed <= most:
        return
    answers = f" + {responses} x rollout_max_tokens ({config.rollout_max_tokens})"
    room = (most - max(1, response_tokens)) // per_frame
    fewer = f"--video-frames of at most {room}" if room >= 1 else "fewer or shorter responses"
    yield (
        f"video_frames ({frames}) x {per_frame} tokens{answers if responses else ''} needs "
        f"{needed} tokens, which exceeds seq_length ({most}): "
        f"give --seq-length of at least {needed} plus the question's tokens, or {fewer}"
    )
