"""What vLLM is asked for: every response is a request of its own.

Of n responses in one request vLLM tells when all are complete; these are told one by one, so that
they can be scored while others are still being generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megatron_longrl.rollout.types import SamplingSettings

if TYPE_CHECKING:
    from vllm import SamplingParams

    from megatron_longrl.data.prompts import Prompt


@dataclass(frozen=True)
class PromptRequest:
    """A prompt as the engine takes it."""

    prompt: Prompt
    seed: int
    embeddings: Tensor
    """[P, h]."""
    extra: dict[str, Any]
    """What its sampling parameters carry beside."""


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
        max_tokens=sampling.max_tokens,
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
