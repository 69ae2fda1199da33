"""Every rule across fields fails with its own line."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrl.cli.rules import validate_layout
from megatron_longrl.errors import UserError
from megatron_longrl.models.vila.config import VilaSection

TE = {"transformer_impl": "transformer_engine"}
TEXT: dict[str, Any] = {"model_family": "qwen2", **dict.fromkeys(VilaSection.required, 0)}

# Fields that break one rule, world size, entry, and the line.
BROKEN = [
    (
        {"embedding_cache_gib": 5.0},
        1,
        "rl",
        "embedding_cache_gib (5) is set without embedding_cache_dir: give --embedding-cache-dir "
        "FOLDER",
    ),
    *(
        (
            {"embedding_cache_dir": "cache", **frozen},
            1,
            entry,
            "embedding_cache_dir keeps the embeddings of a frozen encoder, and this run trains it: "
            f"give {told}, or leave --embedding-cache-dir out",
        )
        for entry, frozen, told in (
            ("rl", {"freeze_vision_tower": True}, "--freeze-projector"),
            ("sft", {"freeze_projector": True}, "--freeze-vision-tower"),
            ("sft", {}, "--freeze-vision-tower --freeze-projector"),
        )
    ),
    (
        {"audio_in_video": True},
        1,
        None,
        "audio_in_video is on, and model_family vila hears nothing: leave it out",
    ),
    (
        {"rollout_server_address": ["node7:8100"]},
        1,
        "rl",
        "rollout_server_address is set, but rollout_engine is colocated: give --rollout-engine "
        "server, or leave --rollout-server-address out",
    ),
    (
        {"rollout_engine": "server", "rollout_server_address": ["node7:8100"]},
        2,
        "rl",
        "rollout_server_address names 1 servers for 2 model replicas: give "
        "--rollout-server-address one HOST:PORT for each",
    ),
    (
        {"rollout_server_address": ["node7:8100", "node8:8100"]},
        1,
        "serve",
        "rollout_server_address names 2 addresses, but a server listens on one: give "
        "--rollout-server-address HOST:PORT",
    ),
    (
        {"tensor_model_parallel_size": 3},
        3,
        None,
        "num_attention_heads (8) is not divisible by tensor_model_parallel_size (3): "
        "choose --tensor-model-parallel-size from 1, 2, 4, 8",
    ),
    (
        {"num_attention_heads": 12, "hidden_size": 96, "tensor_model_parallel_size": 6},
        6,
        None,
        "num_query_groups (4) is neither a multiple nor a divisor of "
        "tensor_model_parallel_size (6): change --tensor-model-parallel-size",
    ),
    (
        {"num_query_groups": 3},
        1,
        None,
        "num_attention_heads (8) is not divisible by num_query_groups (3): "
        "choose --num-query-groups from 1, 2, 4, 8",
    ),
    (
        {"num_attention_heads": 12},
        1,
        None,
        "hidden_size (64) is not divisible by num_attention_heads (12): "
        "choose --num-attention-heads from 1, 2, 4, 8, 16, 32, 64",
    ),
    (
        {"kv_channels": 7},
        1,
        None,
        "kv_channels (7) is odd, but rotary embedding turns pairs: choose another --kv-channels, "
        "or --hidden-size / --num-attention-heads with an even quotient",
    ),
    (
        {"ffn_hidden_size": 97, "tensor_model_parallel_size": 2},
        2,
        None,
        "ffn_hidden_size (97) is not divisible by tensor_model_parallel_size (2): "
        "choose --tensor-model-parallel-size from 1",
    ),
    (
        {"pipeline_model_parallel_size": 3},
        3,
        None,
        "num_layers (4) is not divisible by pipeline_model_parallel_size (3): "
        "choose --pipeline-model-parallel-size from 1, 2, 4",
    ),
    (
        {"tensor_model_parallel_size": 2, "context_parallel_size": 2},
        6,
        None,
        "world size 6 is not divisible by tensor_model_parallel_size (2) x context_parallel_size "
        "(2) x pipeline_model_parallel_size (1) = 4: launch with torchrun on a multiple of 4 "
        "ranks, or lower one of the sizes",
    ),
    (
        {
            "num_attention_heads": 28,
            "num_query_groups": 4,
            "hidden_size": 56,
            "context_parallel_size": 8,
            "cp_comm_type": "a2a",
        },
        8,
        None,
        "cp_comm_type a2a cannot split 28 attention heads in 4 query groups (of each "
        "tensor-parallel rank) over context_parallel_size (8): give --cp-comm-type all_gather or "
        "p2p, or another --context-parallel-size",
    ),
    (
        {"sequence_parallel": True},
        1,
        None,
        "sequence_parallel is on, but tensor_model_parallel_size is 1: "
        "give --no-sequence-parallel, or a larger --tensor-model-parallel-size",
    ),
    (
        {"vision_tensor_parallel": True},
        1,
        None,
        "vision_tensor_parallel is on, but tensor_model_parallel_size is 1: give "
        "--no-vision-tensor-parallel, or a larger --tensor-model-parallel-size",
    ),
    (
        {
            "tensor_model_parallel_size": 4,
            "vision_tensor_parallel": True,
        },
        4,
        None,
        "vision_num_attention_heads (2) is not divisible by tensor_model_parallel_size (4): "
        "choose --tensor-model-parallel-size from 1, 2",
    ),
    (
        {"global_batch_size": 6, "micro_batch_size": 2},
        2,
        "sft",
        "global_batch_size (6) is not divisible by micro_batch_size (2) x data-parallel size (2): "
        "choose a multiple of 4, e.g. --global-batch-size 8",
    ),
    (
        {"seq_length": 4096, "max_position_embeddings": 2048},
        1,
        None,
        "seq_length (4096) exceeds max_position_embeddings (2048): lower --seq-length or raise "
        "--max-position-embeddings",
    ),
    (
        {"rope_scaling_factor": 4, "rope_scaling_type": "yarn"},
        1,
        None,
        "rope_scaling_type yarn needs the context that is lengthened: give "
        "--yarn-original-max-position-embeddings N",
    ),
    (
        {
            "rope_scaling_factor": 4,
            "rope_scaling_type": "yarn",
            "yarn_original_max_position_embeddings": 512,
            "seq_length": 4096,
        },
        1,
        None,
        "seq_length (4096) exceeds yarn_original_max_position_embeddings (512) x "
        "rope_scaling_factor (4): lower --seq-length or raise --rope-scaling-factor",
    ),
    (
        {
            "rope_scaling_factor": 4,
            "rope_scaling_type": "yarn",
            "yarn_original_max_position_embeddings": 32768,
            "yarn_beta_fast": 1,
        },
        1,
        None,
        "yarn_beta_fast (1) is not above yarn_beta_slow (1): raise --yarn-beta-fast",
    ),
    (
        {"rope_scaling_factor": 0.5},
        1,
        None,
        "rope_scaling_factor (0.5) would shorten the context: give one of at least 1, or leave it "
        "out",
    ),
    (
        {"rope_scaling_factor": 4, "mrope_section": (4, 2, 2)},
        1,
        None,
        "rope_scaling_type llama3 has no meaning with mrope_section, which vLLM combines with yarn "
        "only: give --rope-scaling-type yarn, or no --rope-scaling-factor",
    ),
    (
        {"async_save": True},
        1,
        "sft",
        "async_save is on without save: give --save FOLDER",
    ),
    (
        {"vision_image_size": 50},
        1,
        None,
        "vision_image_size (50) is not divisible by vision_patch_size (12): "
        "choose --vision-patch-size from 1, 2, 5, 10, 25, 50",
    ),
    (
        {"vision_num_attention_heads": 3},
        1,
        None,
        "vision_hidden_size (32) is not divisible by vision_num_attention_heads (3): "
        "choose --vision-num-attention-heads from 1, 2, 4, 8, 16, 32",
    ),
    (
        {"vision_feature_layer": -5},
        1,
        None,
        "vision_feature_layer (-5) is the output of no layer of a tower with vision_num_layers "
        "(3): choose --vision-feature-layer from 1 to 3, or from -1 to -3",
    ),
    *(
        (
            {"vision_feature_layer": embeddings},
            1,
            None,
            f"vision_feature_layer ({embeddings}) is the output of no layer of a tower with "
            "vision_num_layers (3): choose --vision-feature-layer from 1 to 3, or from -1 to -3",
        )
        for embeddings in (0, -4)
    ),
    (
        {"freeze_vision_tower": True, "freeze_projector": True, "freeze_language_model": True},
        1,
        "sft",
        "nothing is left to train, because these are on: freeze_vision_tower, freeze_projector, "
        "freeze_language_model; drop one of them, e.g. --no-freeze-language-model",
    ),
    (
        {"lr_warmup_iters": 3, "lr_warmup_fraction": 0.1},
        1,
        None,
        "lr_warmup_iters (3) and lr_warmup_fraction (0.1) are both set: give only one of them",
    ),
    (
        {"lr_warmup_iters": 20},
        1,
        None,
        "warmup of 20 steps leaves nothing of lr_decay_iters (20): "
        "lower --lr-warmup-iters or --lr-warmup-fraction",
    ),
    ({"min_lr": 1e-3}, 1, None, "min_lr (0.001) exceeds lr (0.0001): lower --min-lr"),
    (
        {"save_interval": 5},
        1,
        None,
        "save_interval (5) is set without save: give --save FOLDER",
    ),
    (
        {"finetune": True, "load": None},
        1,
        None,
        "finetune is on without load: give --load FOLDER, or use --pretrained-checkpoint",
    ),
    (
        {"eval_interval": 5},
        1,
        None,
        "eval_interval is set without valid_data_path: give --valid-data-path FILE",
    ),
    (
        {"eval_at_start": True},
        1,
        None,
        "eval_at_start is set without valid_data_path: give --valid-data-path FILE",
    ),
    (
        {"rollout_tensor_parallel_size": 2},
        1,
        None,
        "rollout_tensor_parallel_size (2) does not divide the 1 ranks of a model replica: "
        "choose a divisor, or leave it out",
    ),
    (
        {"grpo_prompts_per_step": 7},
        2,
        "rl",
        "grpo_prompts_per_step (7) is not divisible by the data-parallel size (2): "
        "choose a multiple, e.g. --grpo-prompts-per-step 8",
    ),
    (
        {"grpo_prompts_per_step": 0},
        1,
        "rl",
        "grpo_prompts_per_step (0) must be positive: give --grpo-prompts-per-step N",
    ),
    (
        {"grpo_group_size": 1},
        1,
        "rl",
        "grpo_group_size (1) gives no group to compare a response with, as advantage grpo does: "
        "choose --grpo-group-size of at least 2",
    ),
    (
        {"global_batch_size": 12},
        1,
        "rl",
        "global_batch_size (12) cuts the 64 responses of a step (grpo_prompts_per_step 8 x "
        "grpo_group_size 8) not into equal updates of whole groups for 1 replicas: choose a "
        "multiple of 8 that divides 64, or leave it out for one update",
    ),
    (
        {"rollout_lag": 1},
        1,
        "rl",
        "rollout_lag trains on tokens of older weights, and rollout_correction off takes them for "
        "new ones: give --rollout-correction ratio, or leave --rollout-lag out",
    ),
    (
        {"rollout_step_tokens": 8, "policy_loss": "pg"},
        1,
        "rl",
        "rollout_step_tokens trains on tokens of older weights, and rollout_correction off takes "
        "them for new ones: give --rollout-correction token, or leave --rollout-step-tokens out",
    ),
    (
        {"policy_loss": "pg", "rollout_correction": "ratio"},
        1,
        "rl",
        "rollout_correction ratio bounds the ratio of the policy loss, and pg has none: give "
        "--rollout-correction token, or another --policy-loss",
    ),
    (
        {"dual_clip": 0.5},
        1,
        "rl",
        "dual_clip (0.5) must be above 1, or 0 for none: give --dual-clip 3",
    ),
    (
        {"critic_warmup_steps": 3},
        1,
        "rl",
        "critic_warmup_steps is set, but advantage grpo has no critic: leave "
        "--critic-warmup-steps out, or give --advantage gae",
    ),
    (
        {"critic_iterations": 2},
        1,
        "rl",
        "critic_iterations is set, but advantage grpo has no critic: leave "
        "--critic-iterations out, or give --advantage gae",
    ),
    (
        {"advantage": "gae", "freeze_language_model": True},
        1,
        "rl",
        "advantage gae trains a critic beside a policy that freeze_language_model keeps as it is: "
        "drop --freeze-language-model, or choose another --advantage",
    ),
    (
        {"rl_algorithm": "reinforce++", "kl_type": "full"},
        1,
        "rl",
        "kl_type full needs logits where kl_placement reward has only samples: give "
        "--kl-placement loss, or --kl-type k1",
    ),
    (
        {"kl_target": 0.1},
        1,
        "rl",
        "kl_target adapts grpo_kl_beta, which is 0 and stays so: give --grpo-kl-beta 0.01, or "
        "leave --kl-target out",
    ),
    (
        {"ref_reset_interval": 5},
        1,
        "rl",
        "ref_reset_interval is set, but grpo_kl_beta (0) needs no reference: give "
        "--grpo-kl-beta, or leave --ref-reset-interval out",
    ),
    (
        {
            "ref_reset_interval": 5,
            "grpo_kl_beta": 0.1,
            "save_interval": 7,
            "save": "runs/x",
        },
        1,
        "rl",
        "save_interval (7) is no multiple of ref_reset_interval (5): no checkpoint in between "
        "could be gone on from; choose --save-interval 2 x 5",
    ),
    (
        {"filter_low": 0.9, "filter_high": 0.5},
        1,
        "rl",
        "filter_low (0.9) is not below filter_high (0.5): no group could be kept; give "
        "--filter-low 0.01 --filter-high 0.99",
    ),
    (
        {"video_frames_curriculum": ["5:8"]},
        1,
        "rl",
        "video_frames_curriculum: the first stage begins at iteration 0, and each later than the "
        "one before",
    ),
    (
        {"video_frames_curriculum": ["0:4", "9"]},
        1,
        "rl",
        "video_frames_curriculum: '9' is not ITERATION:FRAMES, as 100:64",
    ),
    (
        {"rollout_temperature": 0},
        1,
        "rl",
        "rollout_temperature (0) makes all responses of a group equal: "
        "give --rollout-temperature 1",
    ),
    (
        {"video_frames": 100},
        1,
        "rl",
        "video_frames (100) x 5 tokens + 1 x rollout_max_tokens (16) needs 516 tokens, which "
        "exceeds seq_length (512): give --seq-length of at least 516 plus the question's tokens, "
        "or --video-frames of at most 99",
    ),
    (
        TE,
        1,
        "rl",
        "transformer_impl transformer_engine attends to causal rows only, but shared_prompt makes "
        "a tree of a prompt and its responses: give --no-shared-prompt, or "
        "--transformer-impl local",
    ),
    (
        TE | {"context_parallel_size": 2},
        2,
        "sft",
        "transformer_impl transformer_engine splits sequences over context_parallel_size (2) ranks "
        "in bf16 only: give --bf16, or --transformer-impl local",
    ),
    (
        TE | {"context_parallel_size": 2, "bf16": True, "kv_channels": 12},
        2,
        "sft",
        "transformer_impl transformer_engine splits sequences over context_parallel_size (2) ranks "
        "only for kv_channels of a multiple of 8, not 12: give --transformer-impl local",
    ),
    (
        # Our own Ulysses repeats a query group on the ranks that share it.
        TE | {"context_parallel_size": 8, "bf16": True, "cp_comm_type": "a2a"},
        8,
        "sft",
        "cp_comm_type a2a of transformer_impl transformer_engine cannot split 4 query groups (of "
        "each tensor-parallel rank) over context_parallel_size (8): give --cp-comm-type all_gather "
        "or p2p, or --transformer-impl local",
    ),
    (
        {"video_frames": 120},
        1,
        "sft",
        "video_frames (120) x 5 tokens needs 601 tokens, which exceeds seq_length (512): give "
        "--seq-length of at least 601 plus the question's tokens, or --video-frames of at most 102",
    ),
    (
        {"video_frames": 8, "rollout_max_tokens": 500},
        1,
        "rl",
        "video_frames (8) x 5 tokens + 1 x rollout_max_tokens (500) needs 540 tokens, which "
        "exceeds seq_length (512): give --seq-length of at least 540 plus the question's tokens, "
        "or --video-frames of at most 2",
    ),
    (
        {"lora_rank": 4, "freeze_language_model": True},
        1,
        "sft",
        "freeze_language_model is on, but lora_parts trains adapters of language_model: leave it "
        "out of one of the two",
    ),
    (
        {"lora_rank": 4, "lora_parts": ("projector",), "freeze_projector": True},
        1,
        "rl",
        "freeze_projector is on, but lora_parts trains adapters of projector: leave it out of one "
        "of the two",
    ),
    (
        {"lora_rank": 4, "lora_parts": ()},
        1,
        "sft",
        "lora_parts is empty, which lora_rank (4) needs: give --lora-parts",
    ),
    (
        {"lora_rank": 4, "lora_target_modules": ()},
        1,
        "sft",
        "lora_target_modules is empty, which lora_rank (4) needs: give --lora-target-modules",
    ),
    (
        {"lora_rank": 4, "lora_alpha": 0},
        1,
        "sft",
        "lora_alpha (0.0) makes adapters add nothing: leave it out, or give --lora-alpha N",
    ),
    (
        TEXT | {"lora_rank": 4, "lora_parts": ("language_model", "vision_tower")},
        1,
        "sft",
        "lora_parts names vision_tower, which model_family qwen2 has not: give --lora-parts with "
        "some of language_model",
    ),
    (
        TE | {"lora_rank": 4},
        1,
        "sft",
        "transformer_impl transformer_engine knows no adapters: give --transformer-impl local, or "
        "--lora-rank 0",
    ),
]


@pytest.mark.parametrize(("fields", "world_size", "entry", "line"), BROKEN)
def test_a_broken_rule_has_its_line(make_config, fields, world_size, entry, line):
    with pytest.raises(UserError) as error:
        validate_layout(make_config(**fields), world_size, entry)
    assert str(error.value) == line


@pytest.mark.parametrize("entry", ["sft", "rl", "evaluate", None])
@pytest.mark.parametrize(
    ("fields", "world_size"),
    [
        ({}, 1),
        ({"tensor_model_parallel_size": 2, "sequence_parallel": True}, 2),
        ({"tensor_model_parallel_size": 8}, 8),
        ({"context_parallel_size": 2, "pipeline_model_parallel_size": 2}, 8),
        ({"rollout_tensor_parallel_size": 2, "tensor_model_parallel_size": 2}, 2),
        ({"video_frames": 76}, 1),
        ({"save": "runs/a"}, 1),
        ({"lora_rank": 4, "freeze_projector": True}, 1),
        ({"lora_rank": 4, "lora_parts": ("vision_tower",), "freeze_language_model": True}, 1),
        (TEXT | {"lora_rank": 4}, 1),
        (TE | {"shared_prompt": False}, 1),
        (TE | {"shared_prompt": False, "context_parallel_size": 8, "bf16": True}, 8),
        (
            TE
            | {"shared_prompt": False, "context_parallel_size": 4, "bf16": True}
            | {"cp_comm_type": "a2a"},
            4,
        ),
    ],
)
def test_layouts_that_keep_the_rules(make_config, fields, world_size, entry):
    validate_layout(make_config(**fields), world_size, entry)


def test_transformer_engine_trains_sft_with_the_default_of_shared_prompts(make_config):
    """SFT has one response in a row, whatever --shared-prompt says."""
    validate_layout(make_config(**TE), 1, "sft")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_ranks_beyond_the_key_and_value_heads(make_config, groups, ranks):
    layout = {"tensor_model_parallel_size": ranks, "num_query_groups": groups}
    validate_layout(make_config(**layout, num_attention_heads=4), ranks)


def test_keys_and_values_that_do_not_split(make_config):
    config = make_config(
        num_attention_heads=8, num_query_groups=1, kv_channels=2, tensor_model_parallel_size=8
    )
    with pytest.raises(UserError, match=r"keys and values of num_query_groups \(1\) .* lower --t"):
        validate_layout(config, 8)


@pytest.mark.parametrize("exchange", ["all_gather", "p2p"])
def test_28_heads_in_4_groups_may_share_a_sequence_over_8_ranks_defect_14(make_config, exchange):
    heads = {"num_attention_heads": 28, "num_query_groups": 4, "hidden_size": 56}
    config = make_config(**heads, context_parallel_size=8, cp_comm_type=exchange)
    validate_layout(config, 8, "rl")


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_a_row_needs_room_for_one_response_of_a_group(make_config, shared_prompt):
    fields = {"video_frames": 8, "rollout_max_tokens": 400, "grpo_group_size": 8}
    validate_layout(make_config(**fields, shared_prompt=shared_prompt), 1, "rl")


def test_evaluation_merges_adapters_whatever_trained_them(make_config):
    validate_layout(make_config(**TE, lora_rank=4), 1, "evaluate")
    validate_layout(make_config(lora_rank=4, freeze_language_model=True), 1, "evaluate")


def test_derived_sizes(make_config):
    config = make_config(tensor_model_parallel_size=2, context_parallel_size=2)
    assert config.parallel.model_parallel_size == 4
    assert config.parallel.data_parallel_size(8) == 2
    assert config.replace(vocab_size=257).padded_vocab_size == 512
    assert config.parallel.sequence_multiple == 4
    assert config.replace(sequence_parallel=True).parallel.sequence_multiple == 8
    assert config.samples_per_step(8, "rl") == 64
    assert config.replace(micro_batch_size=3).samples_per_step(8, "sft") == 6


def test_scale_of_adapters(make_config):
    config = make_config(lora_rank=16)
    assert (config.lora.alpha, config.lora.scale) == (32.0, 2.0)
    assert config.replace(lora_alpha=8).lora.scale == 0.5
    assert config.replace(lora_alpha=8, lora_use_rslora=True).lora.scale == 2.0
    assert config.replace(lora_rank=0).lora.alpha == 0.0


@pytest.mark.parametrize(
    ("image", "patch", "tokens"), [(448, 14, 256), (378, 14, 196), (48, 12, 4), (16, 16, 1)]
)
def test_tokens_per_frame_round_odd_sides_up(make_config, image, patch, tokens):
    config = make_config(vision_image_size=image, vision_patch_size=patch)
    assert config.family.tokens_per_frame == tokens


def test_the_engine_uses_the_replica_where_heads_allow(make_config):
    assert make_config(context_parallel_size=2).rollout_tp_size == 2
    assert make_config(context_parallel_size=3).rollout_tp_size == 1
    sizes = {"context_parallel_size": 4, "rollout_tensor_parallel_size": 2}
    assert make_config(**sizes).rollout_tp_size == 2


def test_warmup_as_a_fraction_of_the_decay(make_config):
    assert make_config(lr_warmup_fraction=0.25).training.lr_warmup_steps == 5
    assert make_config(lr_warmup_iters=3).training.lr_warmup_steps == 3


def test_a_cache_of_embeddings_where_the_encoder_is_frozen(make_config):
    cache = {"embedding_cache_dir": "cache", "embedding_cache_gib": 5.0}
    frozen = make_config(**cache, freeze_vision_tower=True, freeze_projector=True)
    for entry in ("rl", "sft"):
        validate_layout(frozen, 1, entry)
    validate_layout(make_config(**cache), 1, "evaluate")  # which trains nothing
