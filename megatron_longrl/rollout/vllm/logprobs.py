"""Log-probabilities of the policy that is trained, however its samples are truncated.

With top-p, top-k or min-p vLLM's ``processed_logprobs`` are those of the distribution that is left,
renormalised, and its ``raw_logprobs`` know no temperature. The trainer computes the log-softmax of
logits / T over the whole vocabulary; these are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm.config.model import LogprobsMode
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

GREEDY_BELOW = 1e-5
"""Temperature under which vLLM takes the most likely token (``_SAMPLING_EPS``)."""


def report_whole_softmax(sampler: Sampler, no_token: Sequence[Sequence[int]] = ()) -> None:
    """Let a sampler return the log-softmax of logits / T, [requests, vocabulary], of all tokens.

    It is computed after everything that changes logits of greedy choices, too, and before any
    truncation.

    Args:
        no_token: ids that are never drawn, as ranges: the rows of the vocabulary to which the
            tokenizer has no token. They are a truncation like any other: the trainer's
            log-softmax is over all rows, too.
    """
    draw = sampler.sample

    def sample(
        logits: Tensor,
        sampling_metadata: SamplingMetadata,
        logprobs_mode_override: LogprobsMode | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        logprobs = None
        if sampling_metadata.max_num_logprobs is not None:  # Before drawing changes the logits.
            logprobs = tempered(logits, sampling_metadata.temperature).log_softmax(dim=-1)
        for first, behind in no_token:
            logits[:, first:behind] = -torch.inf
        drawn, _ = draw(logits, sampling_metadata, logprobs_mode_override)
        return drawn, logprobs

    sampler.sample = sample


def tempered(logits: Tensor, temperature: Tensor | None) -> Tensor:
    """float32 [requests, vocabulary]: logits / T; the logits of greedy requests.

    Args:
        temperature: [requests], or None when all are greedy.
    """
    logits = logits.float()
    if temperature is None:
        return logits
    divisor = torch.where(temperature < GREEDY_BELOW, torch.ones_like(temperature), temperature)
    return logits / divisor[:, None]
