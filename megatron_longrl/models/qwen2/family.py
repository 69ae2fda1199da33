"""The family's entry."""

from __future__ import annotations

from megatron_longrl.models.text.family import text_family

FAMILY = text_family("qwen2")
