"""The section of Qwen3-VL: the fields of the Qwen-VL families that it has a use for."""

from __future__ import annotations

from typing import ClassVar

from megatron_longrl.models.qwen_vl.config import QwenVLSection


class Qwen3VLSection(QwenVLSection):
    """qwen3-vl: see qwen-vl"""

    unused: ClassVar[frozenset[str]] = frozenset(
        {"vision_window_size", "vision_full_attention_layers", "vision_tokens_per_second"}
    )
