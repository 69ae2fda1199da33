"""Units that several ranks need whole: each of them loads a part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.media.loader import MediaLoader
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.spec import LoadRequest, MediaSpec, UnitTensors
from megatron_longrl.parallel.encoder_groups import EncoderTensorParallelGroup
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks

Outline = tuple[tuple[int, ...], torch.dtype]
"""Shape of one unit, and dtype, of a tensor that an encoder takes."""


def load_together(
    ranks: EncoderTensorParallelGroup,
    requests: Sequence[LoadRequest[MediaSpec]],
    device: torch.device,
    loader: MediaLoader,
) -> list[UnitTensors | MediaError]:
    """Units on every rank of a tensor-parallel encoder, of which each rank loads an equal part.

    Args:
        requests: the same on every rank, all of equal preprocessing.
        loader: reads this rank's part of them.

    Returns:
        The units of each request on ``device``, or the error for which they cannot be read.
    """
    bounds = _bounds(ranks, requests)
    first = bounds[ranks.group.rank()]
    errors: dict[int, MediaError] = {}
    loaded: dict[int, UnitTensors] = {}
    """Number of the first unit, over all requests -> units from there."""
    with raise_on_all_ranks(ranks.gloo_group):
        mine = _spans(ranks, requests)
        wanted = share_of(ranks, requests)
        for (n, (start, _)), result in zip(mine.items(), loader.load(wanted), strict=True):
            if isinstance(result, MediaError):
                errors[n] = result
            else:
                loaded[start - first] = result
    outlines = [(tuple(t.shape[1:]), t.dtype) for t in next(iter(loaded.values()), ())]
    everyone = gather_objects(ranks.gloo_group, (errors, outlines))
    for theirs, _ in everyone:
        errors = theirs | errors
    counts = [stop - start for start, stop in pairwise(bounds)]
    known = next((theirs for _, theirs in everyone if theirs), [])
    whole = [
        _gather(ranks, outline, {at: tensors[k] for at, tensors in loaded.items()}, counts, device)
        for k, outline in enumerate(known)
    ]
    lengths = [len(units) for _, units in requests]
    parts = zip(*(tensor.split(lengths) for tensor in whole), strict=True)
    found = list(parts) if whole else [()] * len(requests)
    return [errors.get(number, tensors) for number, tensors in enumerate(found)]


def share_of(
    ranks: EncoderTensorParallelGroup, requests: Sequence[LoadRequest[MediaSpec]]
) -> list[LoadRequest[MediaSpec]]:
    """The requests of this rank among those of all."""
    ends = _ends(requests)
    return [
        (requests[n][0], requests[n][1][start - ends[n] : stop - ends[n]])
        for n, (start, stop) in _spans(ranks, requests).items()
    ]


def _ends(requests: Sequence[LoadRequest[MediaSpec]]) -> list[int]:
    """Units up to each request, and of all."""
    return [0, *accumulate(len(units) for _, units in requests)]


def _bounds(
    ranks: EncoderTensorParallelGroup, requests: Sequence[LoadRequest[MediaSpec]]
) -> list[int]:
    """Units up to the share of each rank, and of all."""
    total, size = _ends(requests)[-1], ranks.group.size()
    return [total * part // size for part in range(size + 1)]


def _spans(
    ranks: EncoderTensorParallelGroup, requests: Sequence[LoadRequest[MediaSpec]]
) -> dict[int, tuple[int, int]]:
    """Number of a request of which this rank loads units -> the first of these among the units of
    all requests, and the end."""
    rank, bounds = ranks.group.rank(), _bounds(ranks, requests)
    first, last = bounds[rank], bounds[rank + 1]
    return {
        number: (max(start, first), min(stop, last))
        for number, (start, stop) in enumerate(pairwise(_ends(requests)))
        if max(start, first) < min(stop, last)
    }


def _gather(
    ranks: EncoderTensorParallelGroup,
    outline: Outline,
    mine: dict[int, Tensor],
    counts: Sequence[int],
    device: torch.device,
) -> Tensor:
    """All ranks' units one behind the other, [units, …]; zeros where they could not be read."""
    shape, dtype = outline
    part = torch.zeros((max(counts), *shape), dtype=dtype, device=device)
    for start, units in mine.items():
        part[start : start + len(units)] = units
    gathered = part.new_empty((len(counts), *part.shape))
    dist.all_gather_into_tensor(gathered.flatten(0, 1), part, group=ranks.group)
    return torch.cat([theirs[:n] for theirs, n in zip(gathered, counts, strict=True)])
