"""The ways to run one and the same RL step that are compared, and the model that they share.

The model keeps the proportions of a SigLIP-so400m tower at 448 pixels with a 7B language model.
There a frame costs 0.95e12 operations in the tower (26 layers that run, 1,024 patches, projector
included), and its 257 tokens cost 3.36e12 in the linear layers of Qwen2-7B (6.5e9 parameters): a
ratio of 0.28 (0.59 with a 3 x 3 projector's 122 tokens). Here a frame costs 23e6, and its 10 tokens
79e6: 0.29. Attention costs as much as the linear layers at 4 x 10^3 tokens here, 400 frames; there
at 65 x 10^3, 250 frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_longrl.config import Config

MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 256,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 4,
    "num_query_groups": 1,
    "vision_image_size": 84,
    "vision_patch_size": 14,
    "vision_hidden_size": 64,
    "vision_num_layers": 5,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 320,
}
RESPONSE_TOKENS = 64
PROMPTS_PER_STEP = 2
"""One for each of two data-parallel ranks, as published (batch 1 per GPU)."""
_LEAN = {"recompute_granularity": "full", "encoder_chunk_frames": 16, "decode_buffer_mib": 4}
_TOKENS_BESIDE_FRAMES = 512
"""Room for the question and its template."""


@dataclass(frozen=True)
class Variant:
    """A way to run the step."""

    name: str
    description: str
    mr_sp: bool
    """Whether the ranks form one MR-SP group; else they are data-parallel."""
    one_rank: bool = False
    """Whether it runs on a single rank, whatever the others run on."""
    is_default: bool = True
    """Whether it runs when no variant is asked for."""
    encodings_in_rollout: str = "once per step"
    """``per response``, ``per prompt`` (and again in every later pass), or ``once per step``."""
    old_pass: bool = True
    """Whether old log-probabilities take a separate pass, as in Long-RL and verl. With one update
    per batch of rollouts this package's trainer needs none."""
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def encodes_again(self) -> bool:
        """Whether every row of every pass encodes its video again."""
        return self.encodings_in_rollout != "once per step"


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "baseline",
            "data-parallel; every response row encodes its video again in every pass",
            mr_sp=False,
            encodings_in_rollout="per response",
            changes={"shared_prompt": False},
        ),
        Variant(
            "baseline-dedup",
            "the same, but the rollout encodes once per prompt",
            mr_sp=False,
            encodings_in_rollout="per prompt",
            changes={"shared_prompt": False},
        ),
        Variant(
            "stage1",
            "frames split over the ranks, embeddings reused; rows dealt out",
            mr_sp=True,
            changes={"shared_prompt": False, "mrsp_mode": "encode"},
        ),
        Variant(
            "stage1+2",
            "the published method: sequences sharded, too; a prompt is computed per response",
            mr_sp=True,
            changes={"shared_prompt": False, "mrsp_mode": "full"},
        ),
        Variant(
            "longrl",
            "stages chosen by cost, a prompt is computed once per group, no pass for old values",
            mr_sp=True,
            old_pass=False,
            changes={
                "shared_prompt": True,
                "mrsp_mode": "auto",
                "mrsp_hardware_profile": "measured",
            },
        ),
        Variant(
            "one-rank",
            "longrl on a single rank: what decoding, encoding and memory scale against",
            mr_sp=False,
            one_rank=True,
            is_default=False,
            old_pass=False,
            changes={"shared_prompt": True},
        ),
        Variant(
            "longrl-sharded",
            "longrl with every row sharded over the ranks: less memory per rank",
            mr_sp=True,
            is_default=False,
            old_pass=False,
            changes={"shared_prompt": True, "mrsp_mode": "full"},
        ),
        Variant(
            "longrl-whole",
            "longrl with every row whole on one rank: a fixed choice of stages",
            mr_sp=True,
            is_default=False,
            old_pass=False,
            changes={"shared_prompt": True, "mrsp_mode": "encode"},
        ),
        Variant(
            "longrl-lean",
            "the same with recomputed activations: least memory",
            mr_sp=True,
            is_default=False,
            old_pass=False,
            changes={"shared_prompt": True, "mrsp_mode": "full", **_LEAN},
        ),
        Variant(
            "baseline-lean",
            "baseline with recomputed activations",
            mr_sp=False,
            is_default=False,
            encodings_in_rollout="per response",
            changes={"shared_prompt": False, **_LEAN},
        ),
    )
}


def variant_config(
    variant: Variant, frames: int, group_size: int, ranks: int, data: Path
) -> Config:
    """The whole configuration of a point.

    Args:
        data: folder that :func:`~megatron_longrl.benchmark.data.write_data` has filled.
    """
    per_frame = (MODEL["vision_image_size"] // MODEL["vision_patch_size"] // 2) ** 2 + 1
    # Twice the longest row, so that two ranks may also take whole rows.
    length = 2 * (frames * per_frame + _TOKENS_BESIDE_FRAMES + group_size * RESPONSE_TOKENS)
    channels = MODEL["hidden_size"] // MODEL["num_attention_heads"]
    # A key and a value in float32, of every token and layer.
    kept_bytes = 8 * MODEL["num_layers"] * MODEL["num_query_groups"] * channels
    values: dict[str, Any] = {
        **MODEL,
        "tokenizer_type": "SentencePieceTokenizer",
        "tokenizer_model": str(data / "tok.model"),
        "train_data_path": [str(data / str(frames))],
        "seq_length": length,
        "max_position_embeddings": length,
        "rollout_max_tokens": RESPONSE_TOKENS,
        "rollout_memory_gib": max(0.25, length * kept_bytes / 2**30),
        "rollout_tensor_parallel_size": 1,
        "grpo_group_size": group_size,
        "grpo_prompts_per_step": PROMPTS_PER_STEP,
        "grpo_kl_beta": 0.01,
        "context_parallel_size": ranks if variant.mr_sp else 1,
        "freeze_vision_tower": True,
        "freeze_projector": True,
        "train_iters": 100,
        "lr": 1e-6,
        "log_level": "warning",
    }
    return Config.of(values | variant.changes)
