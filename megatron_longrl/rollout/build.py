"""The engine that the configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longrl.models.text.hf_config import language_settings
from megatron_longrl.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.parallel.groups import ParallelGroups


def build_engine(config: Config, tokenizer: Tokenizer, groups: ParallelGroups) -> RolloutEngine:
    """Start the engine; collective over the world.

    Raises:
        UserError: it does not start.
    """
    from megatron_longrl.rollout.vllm_engine import VllmEngine

    dtype = str(config.params_dtype).removeprefix("torch.")
    return VllmEngine(
        _settings(config, dtype),
        tokenizer,
        groups,
        tensor_parallel_size=config.rollout_tensor_parallel_size,
        dtype=config.params_dtype,
        memory_gib=config.rollout_memory_gib,
        max_model_len=config.rollout_model_len,
        timeout_seconds=config.rollout_timeout,
        log_level=config.log_level,
        deepstack_levels=len(config.vision_deepstack_layers),
    )


def _settings(config: Config, dtype: str) -> dict[str, Any]:
    """``config.json`` of the language model, with multimodal positions where it has them."""
    settings = language_settings(config, dtype)
    if config.mrope_section is not None:
        settings["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": config.rotary_base,
            "mrope_section": list(config.mrope_section),
            "mrope_interleaved": config.mrope_interleaved,
        }
    return settings
