"""vLLM's sampling parameters of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_longrl.experience.inputs import EngineInput
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.requests import PromptRequest
from megatron_longrl.rollout.vllm.deepstack import with_features
from megatron_longrl.rollout.vllm.positions import with_positions

if TYPE_CHECKING:
    from vllm import SamplingParams


def extra_args(given: EngineInput, settings: ModelSettings) -> dict[str, Any]:
    """Return the extra arguments that a prompt's sampling parameters carry for the model:
    positions, and DeepStack's features."""
    extra = with_positions(given.positions) if settings.uses_mrope else {}
    if given.features is not None:
        extra |= with_features(given.media_mask, given.features)
    return extra


def sampling_params(
    request: PromptRequest, index: int, sampling: SamplingSettings, end_ids: Sequence[int]
) -> SamplingParams:
    """Return the sampling parameters of rollout ``index``, with the seed ``seed + index``, as vLLM
    does for one of n.

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
        # vLLM has no tokenizer here; see stop.py.
        detokenize=bool(sampling.stop_strings),
        stop=list(sampling.stop_strings),
        include_stop_str_in_output=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=request.extra or None,
        skip_clone=True,  # else vLLM copies what DeepStack adds, for every response
    )
