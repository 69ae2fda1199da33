"""The mergers of the Qwen-VL families: merge x merge patches become one token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.training import TrainingSection


class PatchMerger(torch.nn.Module):
    """Norm, then the patches of a token side by side through linear, GELU, linear.

    Args:
        norm_after: norm the joined patches instead of each.
    """

    def __init__(
        self,
        family: QwenVLSection,
        training: TrainingSection,
        model: ModelSection,
        *,
        norm_after: bool = False,
    ) -> None:
        super().__init__()
        width = family.vision_hidden_size
        self.unit = family.vision_merge_size**2
        joined = width * self.unit
        options: dict[str, Any] = {"dtype": training.params_dtype, "device": platform.device}
        norm = torch.nn.RMSNorm if family.vision_gated_mlp else torch.nn.LayerNorm
        self.norm_after = norm_after
        self.norm = norm(joined if norm_after else width, eps=1e-6, **options)
        self.linear_fc1 = torch.nn.Linear(joined, joined, **options)
        self.linear_fc2 = torch.nn.Linear(joined, model.hidden_size, **options)

    def forward(self, features: Tensor) -> Tensor:
        """[u, patches, c] -> [u, tokens, h]."""
        if self.norm_after:
            joined = self.norm(self._join(features))
        else:
            joined = self._join(self.norm(features))
        return self.linear_fc2(torch.nn.functional.gelu(self.linear_fc1(joined)))

    def _join(self, features: Tensor) -> Tensor:
        """[u, patches, c] -> [u, tokens, c of all patches of a token]."""
        return features.unflatten(1, (-1, self.unit)).flatten(2)


class QwenProjector(torch.nn.Module):
    """The merger of the last layer's features and, for DeepStack, one for every tapped layer's."""

    def __init__(self, config: ModelConfig) -> None:
        family = config.family_as(QwenVLSection)
        super().__init__()
        self.merger = PatchMerger(family, config.training, config.model)
        self.deepstack = torch.nn.ModuleList(
            PatchMerger(family, config.training, config.model, norm_after=True)
            for _ in family.vision_deepstack_layers
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """[u, patches, c] of the last and of each tapped layer -> [u, tokens, h * (1 + taps)]."""
        mergers = [self.merger, *self.deepstack]
        merged = [merge(part) for merge, part in zip(mergers, features, strict=True)]
        return torch.cat(merged, dim=-1)
