"""The section of Qwen2.5-Omni: the fields of the Qwen-VL families that it has a use for, and those
of its audio tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from megatron_longrl.config.divisibility import indivisible
from megatron_longrl.config.section import (
    Architecture,
    CountInt,
    KnownTo,
    PositiveInt,
    Unit,
)
from megatron_longrl.config.sizes import MOST_HEADS, MOST_LAYERS, WIDEST
from megatron_longrl.models.qwen_vl.config import QwenVLSection


class OmniSection(QwenVLSection):
    """qwen2.5-omni: how Qwen2.5-Omni hears; for how it sees, see qwen-vl"""

    parts: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**QwenVLSection.parts, "audio_tower": "audio_encoder"}
    )
    required: ClassVar[tuple[str, ...]] = (
        *QwenVLSection.required,
        "audio_hidden_size",
        "audio_num_layers",
        "audio_num_attention_heads",
        "audio_ffn_hidden_size",
    )
    unused: ClassVar[frozenset[str]] = frozenset(
        {"vision_num_position_embeddings", "vision_deepstack_layers"}
    )

    audio_hidden_size: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the audio tower."""

    audio_num_layers: Annotated[CountInt, Unit("layers"), Architecture(most=MOST_LAYERS)] = 0
    """Layers of the audio tower."""

    audio_num_attention_heads: Annotated[CountInt, Unit("heads"), Architecture(most=MOST_HEADS)] = 0
    """Attention heads of the audio tower."""

    audio_ffn_hidden_size: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the audio tower's feed-forward layers."""

    audio_mel_bins: Annotated[PositiveInt, Unit("bins"), Architecture(most=WIDEST)] = 128
    """Bins of the log-mel features that the audio tower takes."""

    audio_chunk_frames: Annotated[PositiveInt, Unit("frames of 10 ms"), Architecture()] = 200
    """Frames of features that the audio tower encodes together, a unit of work."""

    audio_interleaving_seconds: Annotated[PositiveInt, Unit("seconds"), Architecture()] = 2
    """Seconds of a film behind whose frames their sound follows in the prompt."""

    has_talker: Annotated[bool, Architecture()] = False
    """The weights come from a whole checkpoint: they are called thinker.…, and the parts that speak
    (talker, token2wav) are carried along beside them, untouched."""

    freeze_audio_tower: Annotated[bool, KnownTo("sft", "rl")] = False
    """Do not train the audio tower."""

    @property
    def hears_videos(self) -> bool:
        """Whether the sound of a video can belong to it."""
        return True

    @property
    def name_prefix(self) -> str:
        """Prefix of the names of the thinker's weights."""
        return "thinker." if self.has_talker else ""

    def rules(self, value_of: Callable[[str], Any]) -> Iterator[str]:
        """A line for every rule across fields that does not hold, see
        :meth:`~megatron_longrl.config.family.FamilySection.rules`."""
        yield from super().rules(value_of)
        if self.audio_hidden_size and self.audio_num_attention_heads:
            yield from indivisible(value_of, "audio_hidden_size", "audio_num_attention_heads")
        if self.audio_hidden_size % 2 or self.audio_hidden_size == 2:
            yield (
                f"audio_hidden_size ({self.audio_hidden_size}) is no even number of at least 4, "
                "which its sines and cosines need: give another --audio-hidden-size"
            )
        if self.audio_chunk_frames % 4:
            yield (
                f"audio_chunk_frames ({self.audio_chunk_frames}) is no multiple of 4, the frames "
                "of a token, so that tokens would reach over chunks: give another "
                "--audio-chunk-frames"
            )
