"""Rows of tokens from prompts and their responses.

A row holds a prompt once and behind it its responses as branches of a tree::

    [ p0 p1 … p(P-2) | p(P-1) r0 r1 … | p(P-1) s0 s1 … | padding ]
      branch 0         branch 1         branch 2          -1

Every branch opens with the prompt's last token, from which its first response token is predicted,
and its positions go on from P-1, whatever stands between in the row. With one response this is an
ordinary sequence.
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
    """Fields are [b, s] on the CPU, padded at the end."""

    tokens: Tensor
    """long; media slots hold the tokenizer's ``media_id``, padding holds 0."""
    position_ids: Tensor
    """long, as the prompt and one response alone would have them."""
    branch_ids: Tensor
    """long: 0 prompt, 1..n responses, -1 padding."""
    labels: Tensor
    """long: the response token predicted here, where ``loss_mask`` is 1."""
    loss_mask: Tensor
    """float: 1 where a response token is predicted."""
    media_index: Tensor
    """long: row of the concatenated embeddings of ``media_keys``, -1 for text."""
    response_index: Tensor
    """long: which response of the batch, counted over rows and branches, is predicted; -1 none."""
    media_keys: list[str]
    """Keys of the distinct videos."""
    uids: list[str]
    """Prompt of each row."""
    advantages: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    spans: list[list[slice]] = field(default_factory=list)
    """Where each row's responses are predicted."""


def collate(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Sequence[int]]],
    pad_to_multiple: int,
    seq_length: int,
) -> Batch:
    """One row per prompt with its responses.

    Args:
        responses: token ids, by prompt and response, none empty.
        pad_to_multiple: rows are padded to the longest one, rounded up to a multiple of this.
        seq_length: the longest row that is allowed.

    Raises:
        UserError: a row is longer.
    """
    lengths = [
        len(prompt.token_ids) - 1 + sum(len(response) for response in row)
        for prompt, row in zip(prompts, responses, strict=True)
    ]
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > seq_length:
            raise UserError(
                f"{prompt.uid}: its row has {length} tokens, more than --seq-length {seq_length}: "
                "raise it, or lower --video-frames, --rollout-max-tokens or --grpo-group-size"
            )
    width = -(-max(lengths) // pad_to_multiple) * pad_to_multiple
    shape = (len(prompts), width)
    batch = Batch(
        tokens=torch.zeros(shape, dtype=torch.long),
        position_ids=torch.zeros(shape, dtype=torch.long),
        branch_ids=torch.full(shape, -1),
        labels=torch.zeros(shape, dtype=torch.long),
        loss_mask=torch.zeros(shape),
        media_index=torch.full(shape, -1),
        response_index=torch.full(shape, -1),
        media_keys=[],
        uids=[prompt.uid for prompt in prompts],
    )
    offsets = _media_offsets(prompts, batch.media_keys)
    count = 0
    for b, (prompt, row) in enumerate(zip(prompts, responses, strict=True)):
        stem = len(prompt.token_ids) - 1
        batch.tokens[b, :stem] = prompt.token_ids[:-1]
        batch.position_ids[b, :stem] = torch.arange(stem)
        batch.branch_ids[b, :stem] = 0
        batch.media_index[b, : stem + 1][prompt.media_mask] = torch.cat(
            [
                offsets[video.key()] + torch.arange(length)
                for video, length in zip(prompt.videos, prompt.media_lengths, strict=True)
            ]
            or [torch.empty(0, dtype=torch.long)]
        )
        spans, start = [], stem
        for branch, response in enumerate(row, start=1):
            span = slice(start, start + len(response))
            ids = torch.tensor(response, dtype=torch.long)
            batch.tokens[b, span] = torch.cat([prompt.token_ids[-1:], ids[:-1]])
            batch.position_ids[b, span] = stem + torch.arange(len(response))
            batch.branch_ids[b, span] = branch
            batch.labels[b, span] = ids
            batch.loss_mask[b, span] = 1.0
            batch.response_index[b, span] = count
            spans.append(span)
            start, count = span.stop, count + 1
        batch.spans.append(spans)
    return batch


def scatter_response_values(batch: Batch, values: Sequence[Sequence[Tensor]]) -> Tensor:
    """float [b, s] from one value per response token, by row and response; 0 elsewhere."""
    field_ = torch.zeros(batch.tokens.shape)
    for b, (spans, row) in enumerate(zip(batch.spans, values, strict=True)):
        for span, value in zip(spans, row, strict=True):
            field_[b, span] = value.float()
    return field_


def gather_response_values(batch: Batch, field_: Tensor) -> list[list[Tensor]]:
    """The inverse: [b, s] -> values of each response's tokens, by row and response."""
    return [[field_[b, span] for span in spans] for b, spans in enumerate(batch.spans)]


def _media_offsets(prompts: Sequence[Prompt], keys: list[str]) -> dict[str, int]:
    """First row of each distinct video among the concatenated embeddings; fills ``keys``."""
    offsets: dict[str, int] = {}
    total = 0
    for prompt in prompts:
        for video, length in zip(prompt.videos, prompt.media_lengths, strict=True):
            if video.key() not in offsets:
                offsets[video.key()] = total
                keys.append(video.key())
                total += length
    return offsets
