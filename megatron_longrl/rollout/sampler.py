"""Tokens from logits: temperature, min-p, top-k, nucleus, and one random stream per response."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_longrl.experience.sampling_settings import SamplingSettings


def sample_tokens(
    logits: Tensor,
    sampling: SamplingSettings,
    generators: Sequence[torch.Generator],
    no_token: Sequence[Sequence[int]] = (),
) -> tuple[Tensor, Tensor]:
    """The next token of each response.

    Args:
        logits: float32 [n, v].
        generators: a generator for each response; not used at temperature 0.
        no_token: ids that are never drawn, as ranges (first, behind the last). Like truncation they
            do not change the log-probabilities.

    Returns:
        long [n] tokens and float32 [n] log-probabilities, as
        :attr:`~megatron_longrl.experience.rollouts.Rollout.logprobs` defines them.
    """
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(dim=-1)
        tokens = without(logits, no_token).argmax(dim=-1)
    else:
        logits = logits / sampling.temperature
        logprobs = logits.log_softmax(dim=-1)
        logits = without(logits, no_token)
        left = _most_likely(_likely_enough(logits, sampling.min_p), sampling.top_k)
        probabilities = _nucleus(left, sampling).softmax(dim=-1)
        # The smallest of exponential variables with these rates: token i with probability p_i.
        noise = torch.empty_like(logits)
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(generator=generator)
        tokens = (probabilities / noise).argmax(dim=-1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def without(logits: Tensor, no_token: Sequence[Sequence[int]]) -> Tensor:
    """Logits [n, v] with ids out of reach.

    Args:
        no_token: ranges (first, behind the last) of these ids.
    """
    if not no_token:
        return logits
    left = logits.clone()
    for first, behind in no_token:
        left[:, first:behind] = -torch.inf
    return left


def _likely_enough(logits: Tensor, part: float) -> Tensor:
    """Min-p (https://arxiv.org/abs/2407.01082): tokens of at least this part of the largest
    probability; 0 keeps all."""
    if part == 0:
        return logits
    least = logits.amax(dim=-1, keepdim=True) + math.log(part)
    return logits.masked_fill(logits < least, -torch.inf)


def _most_likely(logits: Tensor, count: int) -> Tensor:
    """All but the ``count`` largest out of reach; -1 keeps all."""
    if not 0 < count < logits.shape[1]:
        return logits
    least = logits.topk(count, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def _nucleus(logits: Tensor, sampling: SamplingSettings) -> Tensor:
    """Nucleus sampling (https://arxiv.org/abs/1904.09751): the fewest most likely tokens whose
    probabilities reach ``top_p``."""
    if sampling.top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
    return logits.masked_fill(dropped, -torch.inf)
