"""The section of the families that read text only: they have no fields beyond the model's."""

from __future__ import annotations

from megatron_longrl.config.family import FamilySection


class TextSection(FamilySection):
    """text: a family without encoders"""
