"""The largest sizes of a model that are believed; larger ones in a file are damage."""

from __future__ import annotations

MOST_LAYERS = 10_000
"""The most layers of a model."""
MOST_HEADS = 1 << 16
"""The most attention heads of a layer."""
WIDEST = 1 << 20
"""The most channels of a layer, and the most pixels of a side."""
LARGEST_VOCABULARY = 1 << 24
"""The most entries of a vocabulary."""
