"""The preprocessing of a vision tower's frames."""

from __future__ import annotations

from dataclasses import dataclass, fields

Channels = tuple[float, float, float]
"""A number for red, green and blue."""

Tiling = tuple[int, int]
"""Rows and columns of tiles."""


@dataclass(frozen=True)
class PreprocessSpec:
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
    pooling: tuple[int, int, int] = (1, 1, 1)
    """Frames, and rows and columns of a frame's tokens, that are averaged into one."""
    tilings: tuple[Tiling, ...] = ()
    """Grids into which resized copies of an image are cut, one copy after the other and row by row,
    where frames are tiles; None where frames are whole pictures."""

    @property
    def joins_tiles(self) -> bool:
        """Whether all tiles of an image are one unit."""
        return bool(self.tilings) and self.frames_per_unit > 1

    @property
    def text(self) -> str:
        """All fields as a text, of which keys of embeddings are made: it must never change, or
        what was kept on disk is encoded again."""
        values = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"FrameView({', '.join(values)})"
