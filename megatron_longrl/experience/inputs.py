"""A prompt as an engine takes it, and the record of it that the trainer compares with its own.

Every engine puts prompts together here, from the ids and placeholders of the one expansion
(:mod:`megatron_longrl.data.prompts`); the trainer does it in its own rows
(:mod:`megatron_longrl.data.collate`). Their agreement is checked, see
:mod:`megatron_longrl.rl.input_parity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from xxhash import xxh3_64_intdigest

from megatron_longrl.errors import UserError
from megatron_longrl.experience.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt


@dataclass(frozen=True)
class InputRecord:
    """The input that an engine was given for a prompt."""

    token_ids: Tensor
    """long [P]."""
    positions: Tensor
    """long [P], or [P, 3] for time, height and width."""
    embedding_hashes: Tensor
    """int64 [P], see :func:`row_hashes`."""
    weight_version: int
    """Version of the language model that embedded the text."""

    @property
    def next_position(self) -> int:
        """Position of the first response token, the same in time, height and width."""
        return int(self.positions[-1].max()) + 1


@dataclass(frozen=True)
class EngineInput:
    """A prompt as an engine takes it."""

    token_ids: Tensor
    """long [P]."""
    positions: Tensor
    """long [P], or [P, 3] for time, height and width."""
    embeddings: Tensor
    """[P, h] of text and media, in the training dtype."""
    media_mask: Tensor
    """bool [P]."""
    features: Tensor | None
    """[m, levels * h] that DeepStack adds at the media's places, in their order."""

    def record(self, length: int, weight_version: int) -> InputRecord:
        """Return the record with which the trainer compares its own input.

        Args:
            length: the length of the prompt; tokens of a response may follow.
        """
        hashes = row_hashes(self.embeddings[:length])
        if self.features is not None:
            mask = self.media_mask[:length].cpu()
            hashes[mask] = row_hashes(self.features, hashes[mask])
        ids, positions = self.token_ids[:length].cpu(), self.positions[:length].cpu()
        return InputRecord(ids, positions, hashes, weight_version)


def media_parts(prompt: Prompt, media: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the embeddings [tokens, w] of the prompt's media, in the order of its placeholders.

    Args:
        media: ``MediaSpec.key()`` -> [tokens, w].

    Returns:
        A tensor for each medium, as it is in ``media``; one tensor for all where media alternate or
        have embeddings of different widths, of which the narrower ones end with zeros.
    """
    parts = [media[spec.key()].detach() for spec in prompt.media]
    if tuple(len(part) for part in parts) != tuple(prompt.media_lengths):
        raise RuntimeError(
            f"prompt {prompt.uid}: media placeholders {tuple(prompt.media_lengths)},"
            f" media embeddings {tuple(len(part) for part in parts)}"
        )
    if prompt.media_order is None and len({part.shape[1] for part in parts}) < 2:
        return parts
    return [torch.cat(equally_wide(parts))[prompt.media_rows.to(parts[0].device)]]


def equally_wide(parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [tokens, w] with zeros behind the columns of the narrower ones."""
    width = max(part.shape[1] for part in parts)
    return [
        part if part.shape[1] == width else pad(part, (0, width - part.shape[1])) for part in parts
    ]


def place_media(embeddings: Tensor, prompt: Prompt, parts: Sequence[Tensor]) -> None:
    """Put the embeddings of media where their placeholders are.

    Args:
        embeddings: [P, h], of all token ids; is written to.
        parts: see :func:`media_parts`.
    """
    places = prompt.media_mask.to(embeddings.device).nonzero().flatten()
    for part, place in zip(parts, places.split([len(part) for part in parts]), strict=True):
        embeddings[place] = part[:, : embeddings.shape[1]].to(embeddings)


def features_of(
    parts: Sequence[Tensor], width: int, dtype: torch.dtype, into: Tensor | None = None
) -> Tensor | None:
    """Return DeepStack's features, [m, levels * h] on the CPU: the channels of media embeddings
    beyond h.

    Args:
        into: the memory for the features; by default those of one video stay where they are.
    """
    if not parts or parts[0].shape[1] == width:
        return None
    features = [part[:, width:].to("cpu", dtype) for part in parts]
    if into is None and len(features) == 1:
        return features[0]
    return torch.cat(features, out=into)


def row_hashes(rows: Tensor, seeds: Tensor | None = None) -> Tensor:
    """Hash (XXH3, 64 bits) the bytes of every row.

    Negative zeros count as zeros: a sum over tensor-parallel ranks makes one of the other.

    Args:
        rows: [n, h].
        seeds: int64 [n], to continue other hashes.

    Returns:
        int64 [n] on the CPU.
    """
    data = (rows.detach() + 0.0).cpu().contiguous().view(torch.uint8).numpy()
    if seeds is None:
        hashes = [xxh3_64_intdigest(row) for row in data]
    else:
        starts = seeds.numpy().view(np.uint64).tolist()
        hashes = [xxh3_64_intdigest(row, seed) for row, seed in zip(data, starts, strict=True)]
    return torch.from_numpy(np.array(hashes, dtype=np.uint64).view(np.int64))


def check_prompts(
    prompts: Sequence[Prompt], sampling: SamplingSettings, max_model_len: int
) -> None:
    """Refuse what no engine can serve.

    Raises:
        UserError: several greedy responses, or a prompt that leaves no room for a response.
    """
    if sampling.temperature == 0 and sampling.n != 1:
        raise UserError(f"greedy sampling gives one response per prompt, not {sampling.n}")
    for prompt in prompts:
        length = len(prompt.token_ids)
        if length + sampling.max_tokens > max_model_len:
            raise UserError(
                f"prompt {prompt.uid}: {length} tokens and a response of {sampling.max_tokens}"
                f" exceed the rollout engine's {max_model_len}; raise --seq-length, or"
                " lower --video-frames, --rollout-max-tokens or --eval-max-tokens"
            )
