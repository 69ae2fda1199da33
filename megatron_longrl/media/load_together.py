"""Frames that several ranks need whole: each of them decodes a part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video.decode import decode_many
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.parallel.encoder_groups import EncoderTensorParallelGroup

Request = tuple[VideoSpec, Sequence[int]]
"""A video, and which of its frames are wanted."""


def decode_together(
    team: EncoderTensorParallelGroup, requests: Sequence[Request], device: torch.device
) -> list[Tensor | MediaError]:
    """Pixels on every rank of the team, of which each decodes an equal part.

    Args:
        requests: the same on every rank, all of one view.

    Returns:
        Per request float32 [f, 3, H, W] on ``device``, or why it cannot be read.
    """
    view = requests[0][0].view
    counts = [len(positions) for _, positions in requests]
    ends = [0, *accumulate(counts)]
    total, size = ends[-1], team.group.size()
    bounds = [total * rank // size for rank in range(size + 1)]
    first, last = bounds[team.group.rank()], bounds[team.group.rank() + 1]
    errors: dict[int, MediaError] = {}
    shares = [stop - start for start, stop in pairwise(bounds)]
    part = torch.zeros(max(shares), 3, view.height, view.width, device=device)
    with together(team.control):
        mine = {
            number: (max(start, first), min(stop, last))
            for number, (start, stop) in enumerate(pairwise(ends))
            if max(start, first) < min(stop, last)
        }
        wanted = [
            (requests[n][0], requests[n][1][a - ends[n] : b - ends[n]])
            for n, (a, b) in mine.items()
        ]
        for (n, (a, b)), result in zip(mine.items(), decode_many(wanted), strict=True):
            if isinstance(result, MediaError):
                errors[n] = result
            else:
                part[a - first : b - first] = result
    for theirs in gather_objects(team.control, errors):
        errors = theirs | errors
    gathered = part.new_empty(size, *part.shape)
    dist.all_gather_into_tensor(gathered.flatten(0, 1), part, group=team.group)
    whole = torch.cat([theirs[:n] for theirs, n in zip(gathered, shares, strict=True)])
    return [errors.get(number, pixels) for number, pixels in enumerate(whole.split(counts))]
