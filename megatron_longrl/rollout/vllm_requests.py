"""What vLLM is asked for: every response is a request of its own.

Of n responses in one request vLLM tells when all are complete; these are told one by one, so that
they can be scored while others are still being generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.rollout.continuation import Beginning, lengthened
from megatron_longrl.rollout.types import SamplingSettings
from megatron_longrl.rollout.vllm_deepstack import with_features
from megatron_longrl.rollout.vllm_model import ModelSettings
from megatron_longrl.rollout.vllm_positions import with_positions

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


def check_prompts(
    prompts: Sequence[Prompt], sampling: SamplingSettings, max_model_len: int
) -> None:
    """Raise UserError for what the engine cannot generate."""
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


def make_request(
    prompt: Prompt,
    seed: int,
    beginning: Beginning,
    media: Mapping[str, Tensor],
    token_embeddings: Tensor,
    settings: ModelSettings,
    *,
    into: Tensor | None = None,
    fill: bool = True,
) -> PromptRequest:
    """The embeddings of the text, from a table [vocabulary, h], with the media's in their slots.

    Args:
        into: [P, h] on CPU, where they come to stand; by default memory of their own.
        fill: whether this process writes them; another one with the same memory does otherwise.
    """
    prompt = lengthened(prompt, beginning.prefix)
    if into is None:
        into = token_embeddings.new_empty(len(prompt.token_ids), token_embeddings.shape[1])
    parts = [media[video.key()].detach() for video in prompt.videos]
    if tuple(len(part) for part in parts) != tuple(prompt.media_lengths):
        raise RuntimeError(
            f"prompt {prompt.uid}: media slots {tuple(prompt.media_lengths)},"
            f" media embeddings {tuple(len(part) for part in parts)}"
        )
    extra = with_positions(prompt.positions) if settings.uses_mrope else {}
    width, mask, copied = into.shape[1], prompt.media_mask.cpu(), 0
    if fill:
        torch.index_select(token_embeddings, 0, prompt.token_ids.cpu(), out=into)
        places = mask.nonzero().flatten().split(list(prompt.media_lengths))
        for part, place in zip(parts, places, strict=True):
            into[place] = part[:, :width].to("cpu", settings.torch_dtype)
        copied = into.nbytes
    if parts and parts[0].shape[1] > width:
        features = [part[:, width:].to("cpu", settings.torch_dtype) for part in parts]
        # Those of one video stay where they are.
        whole = torch.cat(features) if len(features) > 1 else features[0]
        extra |= with_features(mask, whole)
        is_there = whole.untyped_storage().data_ptr() == parts[0].untyped_storage().data_ptr()
        copied += 0 if is_there else whole.nbytes
    begun = beginning.prefix.tolist()
    how = (seed, beginning.wanted, beginning.max_tokens)
    return PromptRequest(*how, into, extra, begun, copied)


def parameters(
    request: PromptRequest, index: int, sampling: SamplingSettings, eos_id: int
) -> SamplingParams:
    """How response ``index`` is drawn: with ``seed + index``, as vLLM does for one among n."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=request.seed + index if sampling.temperature > 0 else None,
        max_tokens=request.max_tokens,
        stop_token_ids=[eos_id] if sampling.stop else [],
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
