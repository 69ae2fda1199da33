"""The parts around the transformer: captions differ after them."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_longrl.arena.shapes import combinations
from megatron_longrl.arena.shapes_folder import TEXT_TOKENS, write_folder
from megatron_longrl.models.sd3.frozen import SD3Parts


def test_embeddings_tell_all_captions_apart(tmp_path: Path) -> None:
    """A caption that is cut, or encoders that are too even, would leave nothing to read."""
    write_folder(tmp_path, 0, steps=1)
    tokens, pooled = SD3Parts(tmp_path, TEXT_TOKENS).encode_texts(
        [shapes.caption for shapes in combinations()]
    )
    for embeddings in (tokens.flatten(1), pooled):
        apart = torch.pdist(embeddings) / embeddings.shape[1] ** 0.5
        assert apart.min() > 0.1 and 0.5 < apart.mean() < 2
