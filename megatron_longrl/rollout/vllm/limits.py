"""The limits of vLLM's options, by its own sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_longrl.errors import UserError
from megatron_longrl.platforms import platform


def check_head_size(hf_config: Mapping[str, Any]) -> None:
    """vLLM says late and in riddles which head sizes it has no kernels or no weights for."""
    derived = hf_config["hidden_size"] // hf_config["num_attention_heads"]
    size = hf_config.get("head_dim") or derived
    if size != derived and hf_config["model_type"] == "qwen2":
        raise UserError(
            f"attention heads of {size} channels, where vLLM's Qwen2 expects hidden size / heads ="
            f" {derived}: change --kv-channels, --hidden-size or --num-attention-heads"
        )
    if platform.name != "cpu":
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise UserError(
            f"attention heads of {size} channels: vLLM on CPU has kernels for"
            f" {', '.join(map(str, sizes))}; change --hidden-size, --num-attention-heads or"
            " --kv-channels"
        )


def scheduling(batched: int, sequences: int, longest: int) -> dict[str, Any]:
    """Tokens per forward pass, and whether a prompt may be split over several.

    On CPU it may not: after a partial prefill vLLM rewinds a seeded request's generator, which CPU
    generators cannot do ("CPU Generator does not use offset").
    """
    if platform.name == "cpu":
        return {
            "max_num_batched_tokens": max(batched, sequences, longest),
            "enable_chunked_prefill": False,
        }
    return {"max_num_batched_tokens": max(batched, sequences), "enable_chunked_prefill": True}
