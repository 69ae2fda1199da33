"""Prompts as embeddings, for an engine that takes them in this form.

Every rollout is a separate request to the engine: vLLM reports the n rollouts of one request when
all are complete; these are reported one by one, so that they can be scored while others are still
being generated. The embeddings of a prompt are in memory once for all its rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.inputs import (
    EngineInput,
    features_of,
    media_parts,
    place_media,
)
from megatron_longrl.rollout.engine_requests import EngineRequest
from megatron_longrl.rollout.model_settings import ModelSettings


@dataclass(frozen=True)
class PromptRequest:
    """A prompt as an engine takes it."""

    seed: int
    """Rollout j samples with ``seed + j``."""
    wanted: Sequence[int]
    """The indices of the rollouts to generate."""
    max_tokens: int
    """The most tokens to add to each of them."""
    embeddings: Tensor
    """[P, h]."""
    extra: dict[str, Any]
    """Further inputs of the engine beside the embeddings: tensors, or tuples of them."""
    prefix: Sequence[int] = ()
    """The tokens with which the rollouts begin; the embeddings end with theirs."""
    copied: int = 0
    """The bytes of embeddings that were copied for it here."""
    given: EngineInput | None = None
    """All of it, where it was made."""


@dataclass(frozen=True)
class EmbeddingBuffer:
    """Memory on the CPU for the embeddings of a prompt."""

    embeddings: Tensor
    """[P, h]."""
    features: Tensor | None = None
    """[m, levels * h] that DeepStack adds; None: there are none, or they stay where they are."""


def buffer_shape(
    request: EngineRequest,
    media: Mapping[str, Tensor],
    token_embeddings: Tensor,
    *,
    moves: bool,
) -> EmbeddingBuffer:
    """The memory that a request needs, in shape only (on the ``meta`` device).

    Args:
        moves: whether the embeddings go to another process; in this one the features of a single
            medium are not copied.
    """
    prompt = request.prompt
    parts, width = media_parts(prompt, media), token_embeddings.shape[1]
    length, slots = len(prompt.token_ids) + len(request.prefix), sum(prompt.media_lengths)
    wide = parts[0].shape[1] - width if len(parts) > (0 if moves else 1) else 0
    meta = partial(torch.empty, dtype=token_embeddings.dtype, device="meta")
    return EmbeddingBuffer(meta(length, width), meta(slots, wide) if wide else None)


def make_request(
    request: EngineRequest,
    media: Mapping[str, Tensor],
    token_embeddings: Tensor,
    settings: ModelSettings,
    *,
    buffer: EmbeddingBuffer,
    extra: Callable[[EngineInput], dict[str, Any]],
    fill: bool = True,
) -> PromptRequest:
    """Put a prompt together: the embeddings of the text, with those of the media in their slots.

    Args:
        token_embeddings: [vocabulary, h].
        buffer: the memory for the embeddings, see :func:`buffer_shape`.
        extra: makes :attr:`PromptRequest.extra`.
        fill: whether this process writes the embeddings; another one with the same memory does
            otherwise.
    """
    prompt = request.whole_prompt
    width, embeddings, features = token_embeddings.shape[1], buffer.embeddings, buffer.features
    parts = media_parts(prompt, media)
    copied = 0
    if features is None:
        features = features_of(parts, width, settings.torch_dtype)
        if features is not None and not _shares_storage(features, parts[0]):
            copied += features.nbytes  # they were on a device
    elif fill:
        features_of(parts, width, settings.torch_dtype, into=features)
        copied += features.nbytes
    if fill:
        torch.index_select(token_embeddings, 0, prompt.token_ids.cpu(), out=embeddings)
        place_media(embeddings, prompt, parts)
        copied += embeddings.nbytes
    # By themselves engines count from 0.
    positions = prompt.positions if settings.uses_mrope else torch.arange(len(prompt.token_ids))
    given = EngineInput(prompt.token_ids, positions, embeddings, prompt.media_mask.cpu(), features)
    return PromptRequest(
        request.seed,
        request.wanted,
        request.max_tokens,
        embeddings,
        extra(given),
        prefix=request.prefix.tolist(),
        copied=copied,
        given=given,
    )


def check_finite(name: str, tensor: Tensor) -> None:
    """Check that an engine can be given a tensor of a request.

    A value that is not finite stays in vLLM's key/value cache, and reaches responses to other
    prompts: on CPU attention multiplies masked values by 0 (measured with vLLM 0.32).

    Args:
        name: the name of the tensor, for the message.
        tensor: a tensor of any shape.

    Raises:
        ValueError: a number of the tensor is NaN or infinite.
    """
    if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.aminmax()):
        raise ValueError(f"the {name} are not finite")


def check_inputs(requests: Sequence[PromptRequest]) -> None:
    """Check all tensors of this process's requests by :func:`check_finite`.

    Raises:
        UserError: naming the first request that cannot be generated from.
    """
    for request in requests:
        assert request.given is not None, "made here"
        try:
            check_finite("embeddings", request.given.embeddings)
            if request.given.features is not None:
                check_finite("features", request.given.features)
        except ValueError as error:
            raise UserError(
                f"no response can be generated: {error}; the weights of the policy or of its "
                "encoder hold NaN or infinity: look at the last steps' grad-norm and loss, and go "
                "on from a checkpoint before them"
            ) from None


def _shares_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
