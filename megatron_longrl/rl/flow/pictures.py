"""Pictures or films of sampled latents: every rank of a replica decodes its share, a few pictures
or one film at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from megatron_longrl.errors import UserError

_AT_ONCE = 8
"""Pictures that are decoded together."""
_DIMENSIONS_OF_FILMS = 5


class PictureDecoder(Protocol):
    """The autoencoder of a family."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, c, h, w] -> uint8 [b, height, width, 3]; those of films have an axis of time
        before the height."""


def decode_share(
    decoder: PictureDecoder, latents: Sequence[Tensor], rank: int, ranks: int
) -> dict[int, np.ndarray]:
    """The pictures of a rank, by the numbers of their samples.

    Args:
        latents: [b, c, (f,) h, w] of all micro-batches of the replica.

    Raises:
        UserError: latents are not finite.
    """
    if not latents:
        return {}
    every = torch.cat(list(latents))
    if not bool(every.isfinite().all()):
        raise UserError(
            "sampled latents are not finite: continue from the last checkpoint with a lower --lr, "
            "or without --bf16"
        )
    mine = list(range(rank, len(every), ranks))
    found: dict[int, np.ndarray] = {}
    at_once = 1 if every.dim() == _DIMENSIONS_OF_FILMS else _AT_ONCE
    for first in range(0, len(mine), at_once):
        numbers = mine[first : first + at_once]
        pictures = decoder.decode(every[numbers]).numpy()
        found |= dict(zip(numbers, pictures, strict=True))
    return found
