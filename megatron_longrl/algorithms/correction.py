"""Weights for tokens that another program sampled than the one that trains.

The rollout engine computes the same model by other kernels, perhaps in another precision or with
older weights. The trainer's probability of a token over the engine's is its importance ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOG_RATIO_LIMIT = 20.0


def token_weights(log_ratio: Tensor, cap: float) -> Tensor:
    """Truncated importance sampling per token: min(ratio, cap).

    Ionides, J. Comput. Graph. Stat. 17 (2008) 295; for rollout engines:
    https://fengyao.notion.site/off-policy-rl

    Args:
        log_ratio: the trainer's log-probability less the engine's.
    """
    return _exp(log_ratio).clamp(max=cap)


def sequence_weights(log_ratio_sums: Tensor, cap: float) -> Tensor:
    """The same of whole responses: min(product of the ratios of all its tokens, cap).

    Args:
        log_ratio_sums: the sum of the log-ratios of its response, at every token.
    """
    return _exp(log_ratio_sums).clamp(max=cap)


def icepop_weights(log_ratio: Tensor, floor: float, cap: float) -> Tensor:
    """The ratio within the bounds, 0 outside: https://ringtech.notion.site/icepop."""
    ratio = _exp(log_ratio)
    return torch.where((ratio >= floor) & (ratio <= cap), ratio, torch.zeros_like(ratio))


def effective_sample_fraction(weight_sum: float, square_sum: float, count: float) -> float:
    """Kish's effective sample size over the number of tokens: (sum w)^2 / (n sum w^2)."""
    return weight_sum**2 / (count * square_sum) if square_sum else 0.0


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()
