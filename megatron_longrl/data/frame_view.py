"""How a vision tower sees frames."""

from __future__ import annotations

from dataclasses import dataclass

Channels = tuple[float, float, float]
"""A number for red, green and blue."""


@dataclass(frozen=True)
class FrameView:
    """Size and normalisation of frames, and what becomes of them in the tower."""

    height: int
    width: int
    mean: Channels
    """Subtracted from pixels scaled to 0..1."""
    std: Channels
    """Divides them after that."""
    frames_per_unit: int = 1
    """Consecutive frames that the tower takes together: its unit of work."""
    tokens_per_unit: int = 1
    """Embeddings that a unit gives."""
