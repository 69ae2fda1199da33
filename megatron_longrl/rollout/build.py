"""The engine that the configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_longrl.data.tokenizer import ids_without_token
from megatron_longrl.errors import UserError
from megatron_longrl.models.text.hf_config import language_settings, multimodal_rotary
from megatron_longrl.platforms import platform
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.vllm.model import ModelSettings

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from megatron_longrl.config import Config
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.rotary import RotarySection
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
    engine = _build(config, tokenizer, groups, gpt)
    # Responses of several steps are under way there: one step more completes them.
    engine.stops_early = not config.rollout.lag and not config.rollout.step_tokens
    return engine


def _build(
    config: Config, tokenizer: Tokenizer, groups: ParallelGroups, gpt: GPTModel | None
) -> RolloutEngine:
    settings = model_settings(config, tokenizer)
    if config.rollout.engine == "megatron":
        return _megatron(config, tokenizer, groups, gpt, settings.no_token)
    if config.rollout.engine == "server":
        from megatron_longrl.rollout.server.engine import ServerEngine

        if platform.name == "cuda" and not config.rollout.server_address:
            raise UserError(
                "a rollout server that the trainer starts would need the trainer's own GPU: start "
                "one on other GPUs with python -m megatron_longrl.serve, and give its "
                "--rollout-server-address"
            )
        return ServerEngine(
            settings,
            tokenizer,
            groups,
            addresses=config.rollout.server_address,
            token_file=config.rollout.token_file,
            bucket_bytes=int(config.rollout.weight_bucket_mib * (1 << 20)),
            timeout_seconds=config.rollout.timeout,
            log_level=config.logging.log_level,
        )
    from megatron_longrl.rollout.vllm.engine import VllmEngine

    return VllmEngine(
        settings,
        tokenizer,
        groups,
        tensor_parallel_size=config.rollout.tensor_parallel_size,
        sleeps=config.rollout.sleep and platform.name == "cuda",
        timeout_seconds=config.rollout.timeout,
        log_level=config.logging.log_level,
    )


def model_settings(config: Config, tokenizer: Tokenizer) -> ModelSettings:
    """What an engine serves; of a server, its size, too."""
    assert config.model.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
    dtype = str(config.training.params_dtype).removeprefix("torch.")
    return ModelSettings(
        hf_config=engine_settings(config.model, config.rotary, dtype),
        dtype=dtype,
        memory_gib=config.rollout.memory_gib,
        max_model_len=config.rollout_model_len,
        tensor_parallel_size=config.rollout.tensor_parallel_size or 1,
        deepstack_levels=config.family.embedding_levels - 1,
        no_token=ids_without_token(tokenizer, config.model.vocab_size),
    )


def _megatron(
    config: Config,
    tokenizer: Tokenizer,
    groups: ParallelGroups,
    gpt: GPTModel | None,
    no_token: Sequence[Sequence[int]],
) -> RolloutEngine:
    """The trained model itself."""
    from megatron_longrl.rollout.megatron_engine import MegatronEngine

    assert gpt is not None, "whoever builds this engine has the model"
    assert config.model.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
    return MegatronEngine(
        gpt,
        tokenizer,
        groups,
        vocab_size=config.model.vocab_size,
        no_token=no_token,
        max_model_len=config.rollout_model_len,
        timeout_seconds=config.rollout.timeout,
    )


def engine_settings(model: ModelSection, rotary: RotarySection, dtype: str) -> dict[str, Any]:
    """``config.json`` of the language model, with multimodal positions where it has them."""
    settings = language_settings(model, rotary, dtype)
    if rotary.mrope_section is not None:
        settings["rope_parameters"] = {
            **multimodal_rotary(rotary),
            "rope_theta": rotary.rotary_base,
        }
        settings.pop("rope_scaling", None)  # the same, and it would win
    return settings
