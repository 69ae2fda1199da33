"""The audio tower of Qwen2.5-Omni on megatron-core's transformer block.

Architecture: https://arxiv.org/abs/2503.20215, as in transformers' ``Qwen2_5OmniAudioEncoder``: two
convolutions over log-mel features, of which the second halves their number, sines and cosines as
positions, pre-norm layers, an average of every two states, a norm and a projection to the language
model. Chunks of two seconds do not see each other, so the tower works on them one by one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_longrl.models.language import common_transformer_options, layer_spec
from megatron_longrl.models.lora import lora_options
from megatron_longrl.models.norms import TorchNorm
from megatron_longrl.models.qwen2_5_omni.attention import UnitAttention
from megatron_longrl.models.qwen2_5_omni.config import OmniSection
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.media.modalities.audio.spec import AudioPreprocess
    from megatron_longrl.parallel.encoder_groups import EncoderGroups

_LONGEST_WAVE = 10_000.0
_EPSILON = 1e-5


def audio_transformer_config(config: ModelConfig) -> TransformerConfig:
    """megatron-core's configuration of the tower, which is whole on every rank."""
    family = config.family_as(OmniSection)
    return TransformerConfig(
        num_layers=family.audio_num_layers,
        hidden_size=family.audio_hidden_size,
        ffn_hidden_size=family.audio_ffn_hidden_size,
        num_attention_heads=family.audio_num_attention_heads,
        normalization="LayerNorm",
        layernorm_epsilon=_EPSILON,
        activation_func=F.gelu,
        add_bias_linear=True,
        add_qkv_bias=True,
        **common_transformer_options(config.training, config.model),
    )


class OmniAudioEncoder(MegatronModule):
    """Units of log-mel features -> embeddings of the language model."""

    def __init__(self, config: ModelConfig, groups: EncoderGroups) -> None:
        family = config.family_as(OmniSection)
        transformer_config = audio_transformer_config(config)
        super().__init__(config=transformer_config)
        hidden, dtype, device = (
            family.audio_hidden_size,
            config.training.params_dtype,
            platform.device,
        )
        self.convolution1 = torch.nn.Conv1d(
            family.audio_mel_bins, hidden, 3, padding=1, dtype=dtype, device=device
        )
        self.convolution2 = torch.nn.Conv1d(
            hidden, hidden, 3, stride=2, padding=1, dtype=dtype, device=device
        )
        self.register_buffer(
            "positions",
            _sines_and_cosines(family.audio_chunk_frames // 2, hidden).to(device),
            persistent=False,
        )
        layer = layer_spec(
            AttnMaskType.no_mask,
            core_attention=UnitAttention,
            lora=lora_options(config.lora, "audio_tower"),
        )
        self.decoder = TransformerBlock(
            config=transformer_config,
            spec=TransformerBlockSubmodules(
                layer_specs=[layer] * family.audio_num_layers, layer_norm=TorchNorm
            ),
            pre_process=True,
            post_process=False,
            pg_collection=groups.pg,
        )
        for block in self.decoder.layers:
            _keep_without_key_bias(block.self_attention.linear_qkv.bias, transformer_config)
        self.norm = torch.nn.LayerNorm(hidden, eps=_EPSILON, dtype=dtype, device=device)
        self.projection = torch.nn.Linear(
            hidden, config.model.hidden_size, dtype=dtype, device=device
        )

    def forward(
        self, features: Tensor, frames: Tensor, preprocess: AudioPreprocess | None = None
    ) -> Tensor:
        """Encode units.

        Args:
            features: float [u, frames, bins], zeros behind the last frame of a unit.
            frames: long [u], how many each has.
            preprocess: says nothing that the module does not know.

        Returns:
            [tokens, h], unit by unit.
        """
        longest = int(frames.max())
        mel = features[:, :longest].transpose(1, 2).to(self.convolution1.weight.dtype)
        is_frame = torch.arange(longest, device=frames.device) < frames[:, None]
        hidden = F.gelu(self.convolution1(mel)) * is_frame[:, None]
        hidden = F.gelu(self.convolution2(hidden))  # [u, c, s]
        positions = self.positions[: hidden.shape[2]].to(hidden.dtype)
        hidden = hidden.permute(2, 0, 1) + positions[:, None]  # [s, u, c]
        states = (frames + 1) // 2
        mask = None
        if int(states.min()) < len(hidden):
            is_state = torch.arange(len(hidden), device=states.device) < states[:, None]
            mask = is_state[:, None, None]
        hidden = self.decoder(hidden.contiguous(), attention_mask=mask)
        pairs = hidden[: len(hidden) // 2 * 2].unflatten(0, (-1, 2)).mean(dim=1).transpose(0, 1)
        is_token = torch.arange(pairs.shape[1], device=states.device) < (states // 2)[:, None]
        return self.projection(self.norm(pairs[is_token]))


def _sines_and_cosines(length: int, channels: int) -> Tensor:
    """float32 [length, channels]."""
    step = math.log(_LONGEST_WAVE) / (channels // 2 - 1)
    frequencies = torch.exp(-step * torch.arange(channels // 2).float())
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _keep_without_key_bias(bias: torch.nn.Parameter, config: TransformerConfig) -> None:
    """Leave the biases of keys, which the family has not, at zero.

    They add the same to all scores of a query, so that their gradients are rounding errors, which
    Adam would make steps of.
    """
    is_key = torch.zeros(config.num_attention_heads, 3, config.kv_channels, dtype=torch.bool)
    is_key[:, 1] = True  # core's order: query, key and value of one head after the other
    keys = is_key.flatten().to(bias.device)
    bias.register_hook(lambda gradient: gradient.masked_fill(keys, 0.0))
