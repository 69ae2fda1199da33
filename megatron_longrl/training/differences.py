"""Comparison of the samples that are trained on with the record of the rollout engine's input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_longrl.experience.inputs import InputRecord
from megatron_longrl.training.sharding import MicroBatch

IDS, POSITIONS, EMBEDDINGS = "token ids", "positions", "embeddings"


class Difference(NamedTuple):
    """The first difference of a sample."""

    uid: str
    what: str
    sequence_index: int
    """Index of the token in the prompt followed by the response."""


def differences(
    batch: MicroBatch,
    records: Mapping[str, InputRecord],
    hashes: Tensor | None,
    weight_version: int,
    media_change: bool = False,
) -> Iterator[Difference]:
    """The first difference of each kind in every sample of a shard.

    Args:
        records: the records of the engine, by the prompt's uid.
        hashes: see :func:`.contract.embedding_hashes`; None where another stage compares them.
        weight_version, media_change: see :func:`.contract.check_inputs`.
    """
    is_media = batch.media_index.cpu() >= 0
    prompt_index, response_index = batch.prompt_index.cpu(), batch.response_index.cpu()
    tokens, positions, sequence_index = (
        field.cpu() for field in (batch.tokens, batch.position_ids, batch.sequence_index)
    )
    for k, uid in enumerate(batch.uids):
        record = records[uid]
        prompt = prompt_index == k
        for j in response_index[prompt].unique().tolist():
            here = prompt & (response_index == j)
            ids, expected = record.token_ids, record.positions
            if j >= 0:
                answer = batch.rollouts[j].token_ids
                steps = record.next_position + torch.arange(len(answer))
                ids = torch.cat([ids, answer])
                expected = torch.cat([expected, _like(steps, expected)])
            compared = [(IDS, tokens, ids, here), (POSITIONS, positions, expected, here)]
            is_new = record.weight_version == weight_version
            if hashes is not None and (is_new or not media_change):
                # Those of responses are the engine's own.
                given = here & (sequence_index < len(record.token_ids))
                given &= is_media | is_new
                compared.append((EMBEDDINGS, hashes, record.embedding_hashes, given))
            for what, ours, theirs, where in compared:
                index = _first(ours[where], theirs, sequence_index[where])
                if index is not None:
                    yield Difference(uid, what, index)


def _like(positions: Tensor, others: Tensor) -> Tensor:
    """[n] -> [n], or [n, 3] where the others have time, height and width."""
    return positions if others.dim() == 1 else positions[:, None].expand(-1, others.shape[1])


def _first(ours: Tensor, theirs: Tensor, sequence_index: Tensor) -> int | None:
    """The smallest place at which values differ, or None.

    Args:
        ours: [t] or [t, 3], of the tokens at ``sequence_index`` [t].
        theirs: [P] or [P, 3], of all places.
    """
    if ours.dim() > theirs.dim():
        theirs = _like(theirs, ours)
    expected = theirs[sequence_index.clamp(max=len(theirs) - 1)]
    if expected.dim() > ours.dim():
        ours = _like(ours, expected)
    differs = (ours != expected).flatten(1).any(dim=1) if ours.dim() > 1 else ours != expected
    differs |= sequence_index >= len(theirs)
    return int(sequence_index[differs].min()) if bool(differs.any()) else None
