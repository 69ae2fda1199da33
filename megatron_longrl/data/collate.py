"""Sequences of tokens, made of prompts and their responses.

A sequence holds a prompt once and behind it its responses as branches of a tree::

    [ p0 p1 … p(P-2) | p(P-1) r0 r1 … | p(P-1) s0 s1 … | padding ]
      branch 0         branch 1         branch 2          -1

Every branch opens with the prompt's last token, from which its first response token is predicted,
and its positions continue from P-1, whatever stands between them. With one response this is an
ordinary sequence. A packed sequence holds several such trees one behind the other, its segments,
which do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.errors import UserError


@dataclass
class Batch:
    """A batch of sequences. Fields are [b, s] on the CPU, padded at the end."""

    tokens: Tensor
    """long; placeholders of media hold the tokenizer's ``media_id``, padding holds 0."""
    position_ids: Tensor
    """long, as the prompt and one response alone would have them; [b, s, 3] where a prompt's are of
    time, height and width."""
    branch_ids: Tensor
    """long: 0 prompt, 1..n responses, -1 padding."""
    segment_ids: Tensor
    """long: the index of the token's prompt in its sequence, from 0."""
    labels: Tensor
    """long: the response token predicted here, where ``loss_mask`` is 1."""
    loss_mask: Tensor
    """float: 1 where a response token is predicted."""
    media_index: Tensor
    """long: row of the concatenated embeddings of ``media_keys``, -1 for text."""
    response_index: Tensor
    """long: index in the batch of the response that is predicted here; -1 where none is."""
    token_index: Tensor
    """long: index in that response of the token that is predicted here."""
    prompt_index: Tensor
    """long: index in ``uids`` of the token's prompt, -1 for padding."""
    sequence_index: Tensor
    """long: index of the token in the prompt followed by the token's own response."""
    media_keys: list[str]
    """Keys of the distinct media."""
    uids: list[str]
    """The uids of the prompts."""
    batch_index: list[int]
    """Index along the batch dimension of each prompt."""
    spans: list[list[slice]] = field(default_factory=list)
    """The positions in its sequence at which each prompt's responses are predicted."""


def collate(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Sequence[int]]],
    pad_to_multiple: int,
    seq_length: int,
    packs: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Collate prompts with their responses into a batch of sequences.

    Args:
        responses: token ids, by prompt and response, none empty.
        pad_to_multiple: sequences are padded to the longest, rounded up to a multiple of this.
        seq_length: the longest sequence that is allowed.
        packs: the prompts of each sequence; by default every prompt has its own sequence.

    Raises:
        UserError: a sequence is longer.
    """
    packs = [[k] for k in range(len(prompts))] if packs is None else packs
    sizes = [
        len(prompt.token_ids) - 1 + sum(len(response) for response in answers)
        for prompt, answers in zip(prompts, responses, strict=True)
    ]
    lengths = [sum(sizes[k] for k in pack) for pack in packs]
    for pack, length in zip(packs, lengths, strict=True):
        if length > seq_length:
            raise UserError(
                f"{prompts[pack[0]].uid}: its row has {length} tokens, more than --seq-length "
                f"{seq_length}: raise it, or lower --video-frames or --rollout-max-tokens"
            )
    width = -(-max(lengths) // pad_to_multiple) * pad_to_multiple
    is_spatial = any(prompt.positions.dim() > 1 for prompt in prompts)
    batch = _empty(len(packs), width, is_spatial=is_spatial)
    batch.uids = [prompt.uid for prompt in prompts]
    batch.batch_index = [0] * len(prompts)
    batch.spans = [[] for _ in prompts]
    offsets = _media_offsets(prompts, batch.media_keys)
    count = 0
    for b, pack in enumerate(packs):
        start = 0
        for segment, k in enumerate(pack):
            end = start + sizes[k]
            batch.batch_index[k] = b
            batch.segment_ids[b, start:end] = segment
            batch.prompt_index[b, start:end] = k
            batch.spans[k] = _write(batch, b, start, prompts[k], responses[k], offsets, count)
            start, count = end, count + len(responses[k])
    return batch


def _empty(size: int, width: int, *, is_spatial: bool = False) -> Batch:
    """Make a batch of padding."""
    shape = (size, width)
    return Batch(
        tokens=torch.zeros(shape, dtype=torch.long),
        position_ids=torch.zeros((*shape, 3) if is_spatial else shape, dtype=torch.long),
        branch_ids=torch.full(shape, -1),
        segment_ids=torch.zeros(shape, dtype=torch.long),
        labels=torch.zeros(shape, dtype=torch.long),
        loss_mask=torch.zeros(shape),
        media_index=torch.full(shape, -1),
        response_index=torch.full(shape, -1),
        token_index=torch.zeros(shape, dtype=torch.long),
        prompt_index=torch.full(shape, -1),
        sequence_index=torch.zeros(shape, dtype=torch.long),
        media_keys=[],
        uids=[],
        batch_index=[],
    )


def padding(width: int) -> Batch:
    """Make a sequence that predicts nothing, for ranks that have no sample in a step."""
    return _empty(1, width)


def _write(
    batch: Batch,
    b: int,
    start: int,
    prompt: Prompt,
    responses: Sequence[Sequence[int]],
    offsets: dict[str, int],
    count: int,
) -> list[slice]:
    """Write a prompt and its responses into sequence ``b`` from ``start`` on.

    Args:
        offsets: see :func:`_media_offsets`.
        count: responses of the batch before these.

    Returns:
        Where the responses are predicted.
    """
    stem = len(prompt.token_ids) - 1
    here = slice(start, start + stem)
    batch.tokens[b, here] = prompt.token_ids[:-1]
    positions = prompt.positions
    batch.position_ids[b, here] = positions[:-1]
    batch.branch_ids[b, here] = 0
    batch.sequence_index[b, here] = torch.arange(stem)
    rows = [
        offsets[spec.key()] + torch.arange(length)
        for spec, length in zip(prompt.media, prompt.media_lengths, strict=True)
    ]
    if rows:
        index = torch.cat(rows)[prompt.media_rows]
        batch.media_index[b, here][prompt.media_mask[:-1]] = index
    spans: list[slice] = []
    start += stem
    for branch, response in enumerate(responses, start=1):
        span = slice(start, start + len(response))
        ids = torch.tensor(response, dtype=torch.long)
        batch.tokens[b, span] = torch.cat([prompt.token_ids[-1:], ids[:-1]])
        steps = torch.arange(len(response))
        # The same in time, height and width.
        batch.position_ids[b, span] = positions[-1] + steps.view(-1, *[1] * (positions.dim() - 1))
        batch.branch_ids[b, span] = branch
        batch.labels[b, span] = ids
        batch.loss_mask[b, span] = 1.0
        batch.response_index[b, span] = count + branch - 1
        batch.token_index[b, span] = steps
        batch.sequence_index[b, span] = stem + steps
        spans.append(span)
        start = span.stop
    return spans


def _media_offsets(prompts: Sequence[Prompt], keys: list[str]) -> dict[str, int]:
    """First row of each distinct medium among the concatenated embeddings; fills ``keys``."""
    offsets: dict[str, int] = {}
    total = 0
    for prompt in prompts:
        for spec, length in zip(prompt.media, prompt.media_lengths, strict=True):
            if spec.key() not in offsets:
                offsets[spec.key()] = total
                keys.append(spec.key())
                total += length
    return offsets
