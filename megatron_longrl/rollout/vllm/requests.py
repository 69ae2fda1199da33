"""What vLLM is asked for: every response is a request of its own.

Of n responses in one request vLLM tells when all are complete; these are told one by one, so that
they can be scored while others are still being generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.inputs import (
    EngineInput,
    InputRecord,
    features_of,
    media_parts,
    place_media,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.continuation import Beginning, lengthened
from megatron_longrl.rollout.vllm.deepstack import with_features
from megatron_longrl.rollout.vllm.model import ModelSettings
from megatron_longrl.rollout.vllm.positions import with_positions

if TYPE_CHECKING:
    from vllm import SamplingParams

    from megatron_longrl.data.prompts import Prompt


@dataclass(frozen=True)
class PromptRequest:
    """A prompt as the engine takes it."""

    seed: int
    """Response j draws with ``seed + j``."""
    wanted: Sequence[int]
    """Indices of the responses to generate."""
    max_tokens: int
    """Of each of them."""
    embeddings: Tensor
    """[P, h]."""
    extra: dict[str, Any]
    """What its sampling parameters carry beside: tensors, or tuples of them."""
    prefix: Sequence[int] = ()
    """Tokens with which the responses have begun; the embeddings end with theirs."""
    copied: int = 0
    """Bytes of embeddings that were copied for it here."""
    given: EngineInput | None = None
    """All of it, where it was made."""


@dataclass(frozen=True)
class Room:
    """Memory on the CPU, in which the embeddings of a prompt come to stand."""

    embeddings: Tensor
    """[P, h]."""
    features: Tensor | None = None
    """[m, levels * h] that DeepStack adds; None: there are none, or they stay where they are."""


def room_for(
    prompt: Prompt,
    beginning: Beginning,
    media: Mapping[str, Tensor],
    token_embeddings: Tensor,
    *,
    moves: bool,
) -> Room:
    """What a request needs, in shape only (on the ``meta`` device).

    Args:
        moves: to another process; in this one the features of a single video stay where they are.
    """
    parts, width = media_parts(prompt, media), token_embeddings.shape[1]
    length, slots = len(prompt.token_ids) + len(beginning.prefix), sum(prompt.media_lengths)
    wide = parts[0].shape[1] - width if len(parts) > (0 if moves else 1) else 0
    meta = partial(torch.empty, dtype=token_embeddings.dtype, device="meta")
    return Room(meta(length, width), meta(slots, wide) if wide else None)


def make_request(
    prompt: Prompt,
    seed: int,
    beginning: Beginning,
    media: Mapping[str, Tensor],
    token_embeddings: Tensor,
    settings: ModelSettings,
    *,
    room: Room,
    fill: bool = True,
) -> PromptRequest:
    """The embeddings of a prompt: of text from a table [vocabulary, h], of media from stage 1.

    Args:
        room: where they come to stand, see :func:`room_for`.
        fill: whether this process writes them; another one with the same memory does otherwise.
    """
    prompt = lengthened(prompt, beginning.prefix)
    width, embeddings, features = token_embeddings.shape[1], room.embeddings, room.features
    parts = media_parts(prompt, media)
    copied = 0
    if features is None:
        features = features_of(parts, width, settings.torch_dtype)
        if features is not None and not _share(features, parts[0]):
            copied += features.nbytes  # they were on a device
    elif fill:
        features_of(parts, width, settings.torch_dtype, into=features)
        copied += features.nbytes
    if fill:
        torch.index_select(token_embeddings, 0, prompt.token_ids.cpu(), out=embeddings)
        place_media(embeddings, prompt, parts)
        copied += embeddings.nbytes
    mask = prompt.media_mask.cpu()
    extra = with_positions(prompt.positions) if settings.uses_mrope else {}
    if features is not None:
        extra |= with_features(mask, features)
    # By itself vLLM counts from 0.
    positions = prompt.positions if settings.uses_mrope else torch.arange(len(prompt.token_ids))
    return PromptRequest(
        seed,
        beginning.wanted,
        beginning.max_tokens,
        embeddings,
        extra,
        prefix=beginning.prefix.tolist(),
        copied=copied,
        given=EngineInput(prompt.token_ids, positions, embeddings, mask, features),
    )


def check_finite(name: str, tensor: Tensor) -> None:
    """Can vLLM be given what a request brings?

    What is not finite stays in the key/value cache, and comes into responses to other prompts: on
    CPU attention multiplies what is masked by 0 (measured with vLLM 0.32).

    Args:
        name: of the tensor, for the message.
        tensor: of any shape.

    Raises:
        ValueError: a number of the tensor is NaN or infinite.
    """
    if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.aminmax()):
        raise ValueError(f"the {name} are not finite")


def check_inputs(requests: Sequence[PromptRequest]) -> None:
    """:func:`check_finite` of all that requests of this process bring.

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


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def records(
    requests: Sequence[PromptRequest], beginnings: Sequence[Beginning], weight_version: int
) -> dict[int, InputRecord]:
    """What an engine was given, by the place of each prompt.

    Args:
        requests: made from ``beginnings``.
    """
    found: dict[int, InputRecord] = {}
    for request, beginning in zip(requests, beginnings, strict=True):
        if beginning.place not in found:
            assert request.given is not None, "made here"
            length = len(request.given.token_ids) - len(request.prefix)
            found[beginning.place] = request.given.record(length, weight_version)
    return found


def parameters(
    request: PromptRequest, index: int, sampling: SamplingSettings, end_ids: Sequence[int]
) -> SamplingParams:
    """How response ``index`` is drawn: with ``seed + index``, as vLLM does for one among n.

    Args:
        end_ids: tokens that end a response.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=request.seed + index if sampling.temperature > 0 else None,
        max_tokens=request.max_tokens,
        stop_token_ids=list(end_ids) if sampling.stop else [],
        ignore_eos=not sampling.stop,
        logprobs=0,  # of the sampled token only
        flat_logprobs=True,
        # vLLM has no tokenizer here; see vllm_stop.py.
        detokenize=bool(sampling.stop_strings),
        stop=list(sampling.stop_strings),
        include_stop_str_in_output=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=request.extra or None,
        skip_clone=True,  # else vLLM copies what DeepStack adds, for every response
    )
