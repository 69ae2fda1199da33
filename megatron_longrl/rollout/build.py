"""The engine that the configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longrl.models.text.hf_config import language_settings
from megatron_longrl.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from megatron_longrl.config import Config
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.parallel.groups import ParallelGroups


def build_engine(
    config: Config, tokenizer: Tokenizer, groups: ParallelGroups, gpt: GPTModel | None = None
) -> RolloutEngine:
    """Start the engine; collective over the world.

    Args:
        gpt: this rank's part of the trained language model, which --rollout-engine megatron runs.

    Raises:
        UserError: it does not start.
    """
    if config.rollout_engine == "megatron":
        return _megatron(config, tokenizer, groups, gpt)
    return _colocated(config, tokenizer, groups)


def _colocated(config: Config, tokenizer: Tokenizer, groups: ParallelGroups) -> RolloutEngine:
    """vLLM inside this program."""
    from megatron_longrl.rollout.vllm_engine import VllmEngine

    dtype = str(config.params_dtype).removeprefix("torch.")
    return VllmEngine(
        _settings(config, dtype),
        tokenizer,
        groups,
        tensor_parallel_size=config.rollout_tensor_parallel_size,
        dtype=config.params_dtype,
        memory_gib=config.rollout_memory_gib,
        max_model_len=min(config.seq_length, config.max_position_embeddings),
        timeout_seconds=config.rollout_timeout,
        log_level=config.log_level,
        deepstack_levels=len(config.vision_deepstack_layers),
    )


def _megatron(
    config: Config, tokenizer: Tokenizer, groups: ParallelGroups, gpt: GPTModel | None
) -> RolloutEngine:
    """The trained model itself."""
    from megatron_longrl.rollout.megatron_engine import MegatronEngine

    assert gpt is not None, "whoever builds this engine has the model"
    assert config.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
    return MegatronEngine(
        gpt,
        tokenizer,
        groups,
        vocab_size=config.vocab_size,
        max_model_len=min(config.seq_length, config.max_position_embeddings),
        timeout_seconds=config.rollout_timeout,
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
