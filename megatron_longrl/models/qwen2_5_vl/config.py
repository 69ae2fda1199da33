"""The section of Qwen2.5-VL: the fields of the Qwen-VL families that it has a use for."""

from __future__ import annotations

from typing import ClassVar

from megatron_longrl.models.qwen_vl.config import QwenVLSection


class Qwen25VLSection(QwenVLSection):
    """qwen2.5-vl: see qwen-vl"""

    unused: ClassVar[frozenset[str]] = frozenset(
        {"vision_num_position_embeddings", "vision_deepstack_layers"}
    )
