"""The common base of flow-matching transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.utils.checkpoint import checkpoint

from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.models.language import common_transformer_options

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


class Layers(MegatronModule):
    """The layers by their numbers.

    Core asks each of them for its divided weights; of a ``ModuleList`` it would ask none.
    """

    def __init__(self, config: TransformerConfig, build: Callable[[int], MegatronModule]) -> None:
        super().__init__(config)
        for layer in range(config.num_layers):
            self.add_module(str(layer), build(layer))


class FlowTransformer(MegatronModule):
    """This rank's part of a transformer that maps latents, times and texts to velocities.

    A subclass builds its layers and maps ``(latents, times, text, pooled)`` to velocities that are
    whole on every rank. Every rank of a replica computes the loss of the whole picture or film:
    gradients, summed over MR-SP ranks, are those of one rank times the number of ranks, and so is
    the count that divides them.

    Args:
        options: fields of :class:`TransformerConfig` in which the families differ.
    """

    def __init__(self, config: ModelConfig, groups: ParallelGroups, **options: Any) -> None:
        model, family = config.model, config.family_as(FlowSection)
        super().__init__(
            TransformerConfig(
                num_layers=model.num_layers,
                hidden_size=model.hidden_size,
                num_attention_heads=model.num_attention_heads,
                kv_channels=model.kv_channels,
                tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
                context_parallel_size=config.parallel.context_parallel_size,
                **options,
                **common_transformer_options(config.training, model),
            )
        )
        self.model_type = ModelType.encoder_or_decoder
        self.cp = groups.cp
        self.patch_size = family.latent_patch_size
        self.patch_width = family.latent_channels * self.patch_size**2
        """Channels of a patch of latents."""
        self._recomputes = config.training.recompute_granularity == "full"

    def run_layer(self, layer: torch.nn.Module, *inputs: Any) -> Any:
        """Run one layer, which the backward pass of a run with ``--recompute-granularity full``
        computes again."""
        if self._recomputes and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def set_input_tensor(self, tensor: object) -> None:
        """Ignore the input of core's schedule: there is one pipeline stage, which gets none."""
