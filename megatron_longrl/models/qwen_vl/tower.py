"""The vision towers of Qwen2.5-VL and Qwen3-VL on megatron-core's transformer block.

Architecture: https://arxiv.org/abs/2502.13923 and https://arxiv.org/abs/2511.21631, as in
transformers' ``Qwen2_5_VisionTransformerPretrainedModel`` and ``Qwen3VLVisionModel``. Two
consecutive frames make one temporal patch, and patches never look beyond theirs, so the tower works
on temporal patches one by one, of any grid.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.models.language import common_transformer_options, layer_spec
from megatron_longrl.models.lora import LoraOptions, lora_options
from megatron_longrl.models.norms import TorchNorm
from megatron_longrl.models.qwen_vl.attention import FrameAttention
from megatron_longrl.models.qwen_vl.config import QwenVLSection
from megatron_longrl.models.qwen_vl.grid import (
    bilinear_taps,
    patch_positions,
    patchify,
    spread,
    window_order,
)
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.encoder_groups import EncoderGroups

_ROTARY_BASE = 10000.0


def vision_transformer_config(config: ModelConfig) -> TransformerConfig:
    """megatron-core's configuration of the tower."""
    family = config.family_as(QwenVLSection)
    tensor = (
        config.parallel.tensor_model_parallel_size if config.parallel.vision_tensor_parallel else 1
    )
    gated = family.vision_gated_mlp
    return TransformerConfig(
        num_layers=family.vision_num_layers,
        hidden_size=family.vision_hidden_size,
        ffn_hidden_size=family.vision_ffn_hidden_size,
        num_attention_heads=family.vision_num_attention_heads,
        normalization="RMSNorm" if gated else "LayerNorm",
        layernorm_epsilon=family.vision_norm_epsilon,
        gated_linear_unit=gated,
        activation_func=torch.nn.functional.silu
        if gated
        else partial(torch.nn.functional.gelu, approximate="tanh"),
        use_te_activation_func=gated,  # that of our layer_spec
        add_bias_linear=True,
        add_qkv_bias=True,
        tensor_model_parallel_size=tensor,
        **common_transformer_options(config.training, config.model),
    )


def _layer(windowed: bool, lora: LoraOptions | None) -> ModuleSpec:
    attention = ModuleSpec(module=FrameAttention, params={"windowed": windowed})
    return layer_spec(AttnMaskType.no_mask, core_attention=attention, lora=lora)


class QwenVisionTower(MegatronModule):
    """Temporal patches [u, t, 3, H, W] -> features of the last layer and of the tapped ones.

    Windows (Qwen2.5-VL) bound the attention of all layers but ``vision_full_attention_layers``;
    learned positions (Qwen3-VL) are resampled to the grid of the frame.
    """

    def __init__(self, config: ModelConfig, groups: EncoderGroups) -> None:
        family = config.family_as(QwenVLSection)
        transformer_config = vision_transformer_config(config)
        super().__init__(config=transformer_config)
        self.patch, self.merge = family.vision_patch_size, family.vision_merge_size
        # Windows are given in pixels.
        self.window = family.vision_window_size // (self.patch * self.merge)
        self.taps = tuple(family.vision_deepstack_layers)
        hidden = family.vision_hidden_size
        dtype, device = config.training.params_dtype, platform.device
        # A convolution whose stride is its kernel: a product with the flattened patch.
        self.patch_embedding = torch.nn.Linear(
            3 * family.vision_temporal_patch_size * self.patch**2,
            hidden,
            bias=family.vision_patch_bias,
            dtype=dtype,
            device=device,
        )
        entries = family.vision_num_position_embeddings
        self.side = int(entries**0.5)
        self.position_embedding = (
            torch.nn.Embedding(entries, hidden, dtype=dtype, device=device) if entries else None
        )
        half = hidden // family.vision_num_attention_heads // 2
        steps = torch.arange(0, half, 2, dtype=torch.float32, device=device) / half
        self.inverse_frequencies = _ROTARY_BASE**-steps
        lora = lora_options(config.lora, "vision_tower")
        layers = [
            _layer(bool(self.window) and layer not in family.vision_full_attention_layers, lora)
            for layer in range(family.vision_num_layers)
        ]
        self.decoder = TransformerBlock(
            config=transformer_config,
            spec=TransformerBlockSubmodules(layer_specs=layers, layer_norm=TorchNorm),
            pre_process=True,
            post_process=False,
            pg_collection=groups.pg,
        )

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Encode.

        Returns:
            Features [u, patches, c], patches block by block (see
            :mod:`megatron_longrl.models.qwen_vl.grid`): of the last layer, then of each tapped one.
        """
        rows, columns = (size // self.patch for size in frames.shape[-2:])
        patches = patchify(frames.to(self.patch_embedding.weight.dtype), self.patch, self.merge)
        hidden = self.patch_embedding(patches)
        if self.position_embedding is not None:
            entries, weights = bilinear_taps(rows, columns, self.merge, self.side)
            table = self.position_embedding(entries.to(hidden.device))
            resampled = (table * weights.to(hidden.device)[:, :, None]).sum(dim=1)
            hidden = hidden + resampled.to(hidden.dtype)
        positions = patch_positions(rows, columns, self.merge).to(hidden.device)
        runs, back = None, None
        if self.window:
            blocks, runs = window_order(rows, columns, self.merge, self.window)
            order = spread(blocks, self.merge).to(hidden.device)
            hidden, positions = hidden[:, order], positions[order]
            back = order.argsort()
        hidden = hidden.transpose(0, 1).contiguous()  # [s, u, c]
        rotary = self._rotary(positions)
        features = []
        for number, layer in enumerate(self.decoder.layers):
            hidden, _ = layer(hidden_states=hidden, attention_mask=runs, rotary_pos_emb=rotary)
            if number in self.taps:
                features.append(hidden)
        found = [hidden, *features]
        if back is not None:
            found = [feature[back] for feature in found]
        return [feature.transpose(0, 1) for feature in found]

    def _rotary(self, positions: Tensor) -> Tensor:
        """Angles [s, 1, 1, d]: a quarter of the channels turns with the row, one with the
        column."""
        angles = (positions[:, :, None].float() * self.inverse_frequencies).flatten(1)
        return torch.cat([angles, angles], dim=-1)[:, None, None]
