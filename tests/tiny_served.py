"""The settings of a small engine, whose model is a Qwen2 of two layers."""

from __future__ import annotations

from typing import Any

from megatron_longrl.rollout.model_settings import ModelSettings

HF_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "initializer_range": 0.15,  # peaked distributions: greedy choices do not hang by a rounding
}
MAX_MODEL_LEN = 128


def model_settings(
    hf_config: dict[str, Any] = HF_CONFIG, memory_gib: float = 0.01
) -> ModelSettings:
    """Of a small engine."""
    return ModelSettings(
        hf_config,
        dtype="float32",
        memory_gib=memory_gib,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=32,
        max_num_batched_tokens=150,  # less than the prompts together
    )
