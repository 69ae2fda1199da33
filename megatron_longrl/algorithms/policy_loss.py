"""Policy losses per token."""

from __future__ import annotations

import torch
from torch import Tensor

_LOG_RATIO_LIMIT = 20.0


def ratio_of(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The policy's probability of each token over that before the update; e^20 at most."""
    return (logprobs - old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()


def clipped(
    ratio: Tensor,
    advantages: Tensor,
    clip_lower: float,
    clip_upper: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate with asymmetric bounds and dual clipping.

    PPO: https://arxiv.org/abs/1707.06347; separate bounds: DAPO, https://arxiv.org/abs/2503.14476;
    dual clip for negative advantages: https://arxiv.org/abs/1912.09729.

    Args:
        ratio, advantages: the same shape, one entry a token. GSPO's ratio
            (:func:`sequence_ratio`) makes this GSPO's loss.
        clip_lower, clip_upper: the ratio stays within [1 - lower, 1 + upper].
        dual_clip: the largest ratio that counts for a negative advantage; None for none.

    Returns:
        (loss, clipped as 0 or 1), each of the inputs' shape.
    """
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_lower, 1 + clip_upper)
    loss = torch.maximum(plain, bounded)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return loss, (bounded > plain).float()


def sequence_ratio(logprobs: Tensor, mean_log_ratio: Tensor) -> Tensor:
    """GSPO's ratio of a whole response at each of its tokens.

    https://arxiv.org/abs/2507.18071, section 4: its value is the geometric mean of the
    response's ratios; its gradient goes to the token's own log-probability, so that the mean over
    the response's tokens has the gradient of the response's ratio. Beyond the limits of
    :func:`ratio_of` there is no gradient either.

    Args:
        logprobs: one entry a token.
        mean_log_ratio: without a graph, at every token the mean over its response of the
            differences from the old log-probabilities.
    """
    value = mean_log_ratio.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()
    is_within = mean_log_ratio.abs() <= _LOG_RATIO_LIMIT
    return value * torch.where(is_within, logprobs - logprobs.detach(), 0).exp()


def cispo(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_lower: float, clip_upper: float
) -> tuple[Tensor, Tensor]:
    """The log-likelihood weighted by a bounded ratio without a gradient of its own.

    https://arxiv.org/abs/2506.13585, section 3.1.

    Returns:
        (loss, bounded as 0 or 1), each of the inputs' shape.
    """
    weight = ratio.detach().clamp(1 - clip_lower, 1 + clip_upper)
    return -weight * advantages * logprobs, (weight != ratio.detach()).float()


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE: the log-likelihood weighted by advantages."""
    return -advantages * logprobs
