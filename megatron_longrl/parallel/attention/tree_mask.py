"""The mask between tokens, computed from their coordinates, and the blocks that need one.

A token's coordinates are (segment, branch, index): the packed sample that it belongs to, its branch
of the sample's tree (0 is the prompt, 1..n the responses behind it) and its place in the row. It
sees the tokens of its segment up to itself that are the prompt's or its own branch's. Causal
attention is one segment with one branch.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024
"""Longest side of a block of queries by keys whose mask is ever expanded."""


def token_coordinates(branch_ids: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """Coordinates of whole rows.

    Args:
        branch_ids: [b, s]: 0 prompt, 1..n responses, -1 padding.
        segment_ids: [b, s], at least 0; by default a row is one segment.

    Returns:
        int32 [b, s, 3].
    """
    index = torch.arange(branch_ids.shape[1], device=branch_ids.device).expand_as(branch_ids)
    segment = torch.zeros_like(branch_ids) if segment_ids is None else segment_ids
    padding = branch_ids < 0
    # Every token of padding is a segment of its own: it sees itself, so that no softmax is empty.
    segment = torch.where(padding, -1 - index, segment)
    return torch.stack([segment, branch_ids.clamp(min=0), index], dim=-1).int()


def tree_mask(query: Tensor, key: Tensor) -> Tensor:
    """The dense mask: coordinates [..., q, 3] and [..., k, 3] -> bool [..., q, k]."""
    query_segment, query_branch, query_index = query[..., :, None, :].unbind(-1)
    key_segment, key_branch, key_index = key[..., None, :, :].unbind(-1)
    related = (key_branch == 0) | (key_branch == query_branch)
    return (key_segment == query_segment) & related & (key_index <= query_index)


class BlockKind(enum.Enum):
    """The part of a block that is seen."""

    FULL = enum.auto()
    CAUSAL = enum.auto()
    """The same tokens on both sides, each seeing those up to itself."""
    MASKED = enum.auto()


@dataclass(frozen=True)
class KeyRun:
    """Neighbouring keys that a block of queries attends to in one call."""

    keys: slice
    kind: BlockKind


@dataclass(frozen=True)
class QueryBlock:
    """A block of queries and the keys that it attends to; keys that no query sees are left out."""

    queries: slice
    runs: tuple[KeyRun, ...]


class _Blocks(NamedTuple):
    """Neighbouring tokens, by block. Tensors are int32 [blocks]."""

    spans: list[slice]
    length: Tensor
    segment: tuple[Tensor, Tensor]
    """Smallest and largest."""
    branch: tuple[Tensor, Tensor]
    """Smallest and largest."""
    response: Tensor
    """The smallest branch that is not the prompt's; larger than any branch where there is none."""
    ends: tuple[Tensor, Tensor]
    """Places in the row of the first and the last token."""


_NONE = torch.iinfo(torch.int32).max


def _blocks(coordinates: Tensor, size: int) -> _Blocks:
    """Cut tokens [s, 3] into blocks of at most ``size`` whose places in the row are consecutive."""
    s = coordinates.shape[0]
    index = coordinates[:, 2]
    jumps = (torch.nonzero(index[1:] - index[:-1] != 1)[:, 0] + 1).tolist()
    edges = [0, *jumps, s]
    spans = [
        slice(start, min(start + size, stop))
        for first, stop in itertools.pairwise(edges)
        for start in range(first, stop, size)
    ]
    length = torch.tensor([span.stop - span.start for span in spans], dtype=torch.int32)
    block = torch.repeat_interleave(torch.arange(len(spans)), length)

    def reduced(values: Tensor, how: str) -> Tensor:
        empty = values.new_zeros(len(spans))
        return empty.scatter_reduce(0, block, values, how, include_self=False)

    segment, branch = coordinates[:, 0], coordinates[:, 1]
    return _Blocks(
        spans=spans,
        length=length,
        segment=(reduced(segment, "amin"), reduced(segment, "amax")),
        branch=(reduced(branch, "amin"), reduced(branch, "amax")),
        response=reduced(branch.masked_fill(branch == 0, _NONE), "amin"),
        ends=(index[[span.start for span in spans]], index[[span.stop - 1 for span in spans]]),
    )


def plan_blocks(query: Tensor, key: Tensor, size: int = BLOCK) -> list[QueryBlock]:
    """Returns the keys that each block of queries has to attend to.

    The plan costs little next to attention: only the extremes of the blocks are compared.

    Args:
        query: coordinates [q, 3] on the CPU, key: [k, 3], each in any order of pieces of the row.
    """
    queries, keys = _blocks(query, size), _blocks(key, size)
    (q_seg, q_seg_max), (k_seg, k_seg_max) = _columns(queries.segment), keys.segment
    (q_branch, q_branch_max), (k_branch, k_branch_max) = _columns(queries.branch), keys.branch
    (q_first, q_last), (k_first, k_last) = _columns(queries.ends), keys.ends
    one_segment = (q_seg == q_seg_max) & (k_seg == k_seg_max) & (q_seg == k_seg)
    # A prompt and at most one response: causal order alone keeps the response from the prompt.
    one_response = (k_branch_max == 0) | (keys.response == k_branch_max)
    own_response = one_response & (q_branch == q_branch_max) & (q_branch == k_branch_max)
    full = one_segment & (k_last <= q_first) & ((k_branch_max == 0) | own_response)
    same_tokens = (q_first == k_first) & (q_last == k_last)
    causal = one_segment & same_tokens & one_response
    unseen = (
        (k_first > q_last)
        | (k_seg > q_seg_max)
        | (k_seg_max < q_seg)
        | ((k_branch > 0) & ((k_branch > q_branch_max) | (k_branch_max < q_branch)))
    )
    table = torch.full(unseen.shape, BlockKind.MASKED.value)
    table[causal] = BlockKind.CAUSAL.value
    table[full] = BlockKind.FULL.value
    table[unseen] = 0
    return [
        QueryBlock(span, _merged(keys.spans, kinds))
        for span, kinds in zip(queries.spans, table.tolist(), strict=True)
    ]


def _columns(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0][:, None], pair[1][:, None]


def _merged(spans: list[slice], kinds: list[int]) -> tuple[KeyRun, ...]:
    """The seen blocks; neighbours that are seen fully become one run."""
    runs: list[KeyRun] = []
    for span, value in zip(spans, kinds, strict=True):
        if not value:
            continue
        run = KeyRun(span, BlockKind(value))
        if run.kind is BlockKind.FULL and runs and runs[-1].kind is BlockKind.FULL:
            before = runs[-1].keys
            if before.stop == span.start:
                run = KeyRun(slice(before.start, span.stop), BlockKind.FULL)
                runs.pop()
        runs.append(run)
    return tuple(runs)
