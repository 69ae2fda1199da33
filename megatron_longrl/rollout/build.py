"""The engine that the configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.engines import ENGINES
from megatron_longrl.errors import UserError
from megatron_longrl.rollout.engine import RolloutEngine

if TYPE_CHECKING:
    import torch

    from megatron_longrl.config import Config, ModelConfig
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.rollout import RolloutSection
    from megatron_longrl.config.rotary import RotarySection
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.parallel.groups import ParallelGroups
    from megatron_longrl.rollout.base_engine import EngineSetup
    from megatron_longrl.rollout.model_settings import ModelSettings


@dataclass(frozen=True)
class EngineContext:
    """The objects that an engine is built from."""

    config: Config
    """The run's configuration, with the vocabulary's size."""
    tokenizer: Tokenizer
    groups: ParallelGroups
    """The process groups of this rank."""
    policy: torch.nn.Module | None = None
    """This rank's part of the trained policy, without wrappers, where it exists."""

    def setup(self, engine: int = 0, num_engines: int = 1) -> EngineSetup:
        """Return the arguments of the engine's base class.

        Args:
            engine: the number of this rank's engine among those of the replica.
            num_engines: the engines of the replica, which share its prompts.
        """
        from megatron_longrl.rollout.base_engine import EngineSetup

        return EngineSetup(
            self.tokenizer,
            self.groups,
            self.config.rollout_model_len,
            self.config.rollout.timeout,
            engine,
            num_engines,
        )

    def model_settings(self) -> ModelSettings:
        """The language model that an engine serves."""
        config = self.config
        return model_settings(config, config.rollout, config.rollout_model_len, self.tokenizer)


def build_engine(
    config: Config,
    tokenizer: Tokenizer,
    groups: ParallelGroups,
    policy: torch.nn.Module | None = None,
) -> RolloutEngine:
    """Start the engine; collective over the world.

    Args:
        policy: see :class:`EngineContext`.

    Raises:
        UserError: it does not start.
    """
    context = EngineContext(config, tokenizer, groups, policy)
    engine: RolloutEngine = ENGINES.find(config.rollout.engine).start(context)
    # Responses of several steps are under way there: one step more completes them.
    engine.stops_early = not config.rollout.lag and not config.rollout.step_tokens
    return engine


def colocated(context: EngineContext) -> RolloutEngine:
    """vLLM on the trainer's ranks."""
    from megatron_longrl.platforms import platform
    from megatron_longrl.rollout.vllm.engine import VllmEngine

    rollout = context.config.rollout
    return VllmEngine(
        context.model_settings(),
        context.tokenizer,
        context.groups,
        tensor_parallel_size=rollout.tensor_parallel_size,
        sleeps=rollout.sleep and platform.name == "cuda",
        timeout_seconds=rollout.timeout,
        log_level=context.config.logging.log_level,
    )


def server(context: EngineContext) -> RolloutEngine:
    """Build a vLLM engine on a server."""
    from megatron_longrl.platforms import platform
    from megatron_longrl.rollout.server.engine import ServerEngine

    rollout = context.config.rollout
    if platform.name == "cuda" and not rollout.server_address:
        raise UserError(
            "a rollout server that the trainer starts would need the trainer's own GPU: start "
            "one on other GPUs with python -m megatron_longrl.serve, and give its "
            "--rollout-server-address"
        )
    return ServerEngine(
        context.model_settings(),
        context.tokenizer,
        context.groups,
        addresses=rollout.server_address,
        token_file=rollout.token_file,
        bucket_bytes=int(rollout.weight_bucket_mib * (1 << 20)),
        timeout_seconds=rollout.timeout,
        log_level=context.config.logging.log_level,
    )


def megatron(context: EngineContext) -> RolloutEngine:
    """The trained model itself."""
    from megatron_longrl.data.tokenizer import ids_without_token
    from megatron_longrl.rollout.megatron_engine import MegatronEngine

    groups, vocab_size = context.groups, context.config.model.vocab_size
    assert context.policy is not None, "whoever builds this engine has the model"
    assert vocab_size is not None, "the vocabulary's size comes from the tokenizer"
    return MegatronEngine(
        context.setup(groups.cp.rank(), groups.cp.size()),
        context.policy,
        vocab_size=vocab_size,
        no_token=ids_without_token(context.tokenizer, vocab_size),
    )


def model_settings(
    config: ModelConfig, rollout: RolloutSection, max_model_len: int, tokenizer: Tokenizer
) -> ModelSettings:
    """Return the settings of the model that an engine serves, with its size for a server.

    Args:
        max_model_len: the most tokens of a prompt with its response.
    """
    from megatron_longrl.data.tokenizer import ids_without_token
    from megatron_longrl.rollout.model_settings import ModelSettings

    assert config.model.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
    dtype = str(config.training.params_dtype).removeprefix("torch.")
    return ModelSettings(
        hf_config=engine_settings(config.model, config.rotary, dtype),
        dtype=dtype,
        memory_gib=rollout.memory_gib,
        max_model_len=max_model_len,
        tensor_parallel_size=rollout.tensor_parallel_size or 1,
        deepstack_levels=config.family.embedding_levels - 1,
        no_token=ids_without_token(tokenizer, config.model.vocab_size),
    )


def engine_settings(model: ModelSection, rotary: RotarySection, dtype: str) -> dict[str, Any]:
    """``config.json`` of the language model, with multimodal positions where it has them."""
    from megatron_longrl.models.text.hf_config import language_settings, multimodal_rotary

    settings = language_settings(model, rotary, dtype)
    if rotary.mrope_section is not None:
        settings["rope_parameters"] = {
            **multimodal_rotary(rotary),
            "rope_theta": rotary.rotary_base,
        }
        settings.pop("rope_scaling", None)  # the same, and it would win
    return settings
