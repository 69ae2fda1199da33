"""Ranks that encode the same frames, because each holds a part of every layer of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.media.video import decode_many
from megatron_longrl.media.video_info import VideoError
from megatron_longrl.media.video_spec import VideoSpec
from megatron_longrl.parallel.agree import gather_objects, together

Request = tuple[VideoSpec, Sequence[int]]
"""A video, and which of its frames are wanted."""


@dataclass(frozen=True)
class Team:
    """The ranks over which a tower's layers are split."""

    group: ProcessGroup
    control: ProcessGroup
    """A gloo group of the same ranks."""

    def decode(
        self, requests: Sequence[Request], device: torch.device
    ) -> list[Tensor | VideoError]:
        """Pixels on every rank of the team, of which each decodes an equal part.

        Args:
            requests: the same on every rank, all of one view.

        Returns:
            Per request float32 [f, 3, H, W] on ``device``, or why it cannot be read.
        """
        view = requests[0][0].view
        counts = [len(positions) for _, positions in requests]
        ends = [0, *accumulate(counts)]
        total, size = ends[-1], self.group.size()
        bounds = [total * rank // size for rank in range(size + 1)]
        first, last = bounds[self.group.rank()], bounds[self.group.rank() + 1]
        errors: dict[int, VideoError] = {}
        shares = [stop - start for start, stop in pairwise(bounds)]
        part = torch.zeros(max(shares), 3, view.height, view.width, device=device)
        with together(self.control):
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
                if isinstance(result, VideoError):
                    errors[n] = result
                else:
                    part[a - first : b - first] = result
        for theirs in gather_objects(self.control, errors):
            errors = theirs | errors
        gathered = part.new_empty(size, *part.shape)
        dist.all_gather_into_tensor(gathered.flatten(0, 1), part, group=self.group)
        whole = torch.cat([theirs[:n] for theirs, n in zip(gathered, shares, strict=True)])
        return [errors.get(number, pixels) for number, pixels in enumerate(whole.split(counts))]
