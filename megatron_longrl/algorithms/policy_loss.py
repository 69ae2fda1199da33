"""Policy losses per token: what ``--policy-loss`` names, and the formulas of the papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class TokenLossInputs:
    """The inputs of a policy loss: t response tokens of this rank's shard of a micro-batch."""

    logprobs: Tensor
    """[t], with a graph."""
    old_logprobs: Tensor
    """[t]: those of the policy to which the ratio is taken."""
    advantages: Tensor
    """[t]."""
    clip_lower: float
    """The ratio is clipped below at 1 minus this."""
    clip_upper: float
    """The ratio is clipped above at 1 plus this."""
    dual_clip: float | None
    """The largest ratio that counts for a negative advantage; None for none."""
    response_means: Callable[[Tensor], Tensor]
    """[t] -> [t]: at every token the mean of some values over its whole response; collective over
    the ranks that share the micro-batch."""


@dataclass(frozen=True)
class TokenLossOutput:
    """The loss of each token, and the quantities that are reported of it."""

    loss: Tensor
    """[t]."""
    ratio: Tensor
    """[t]: the policy's probability over that before the update."""
    clipped: Tensor
    """[t]: 1 where a bound of the ratio has acted, else 0."""


TokenLoss = Callable[[TokenLossInputs], TokenLossOutput]
"""A policy loss."""


def clip(tokens: TokenLossInputs) -> TokenLossOutput:
    """PPO's clipped surrogate, see :func:`clipped_surrogate`."""
    return _surrogate(tokens, ratio_of(tokens.logprobs, tokens.old_logprobs))


def gspo(tokens: TokenLossInputs) -> TokenLossOutput:
    """The clipped surrogate with the ratio of the whole response, see :func:`sequence_ratio`."""
    log_ratio = tokens.logprobs.detach() - tokens.old_logprobs
    return _surrogate(tokens, sequence_ratio(tokens.logprobs, tokens.response_means(log_ratio)))


def cispo(tokens: TokenLossInputs) -> TokenLossOutput:
    """The log-likelihood with bounded weights, see :func:`bounded_likelihood`."""
    ratio = ratio_of(tokens.logprobs, tokens.old_logprobs)
    bounds = (tokens.clip_lower, tokens.clip_upper)
    loss, outside = bounded_likelihood(tokens.logprobs, ratio, tokens.advantages, *bounds)
    return TokenLossOutput(loss, ratio, outside)


def pg(tokens: TokenLossInputs) -> TokenLossOutput:
    """The policy gradient, see :func:`policy_gradient`."""
    ratio = ratio_of(tokens.logprobs, tokens.old_logprobs)
    loss = policy_gradient(tokens.logprobs, tokens.advantages)
    return TokenLossOutput(loss, ratio, torch.zeros_like(ratio))


def _surrogate(tokens: TokenLossInputs, ratio: Tensor) -> TokenLossOutput:
    bounds = (tokens.clip_lower, tokens.clip_upper, tokens.dual_clip)
    loss, outside = clipped_surrogate(ratio, tokens.advantages, *bounds)
    return TokenLossOutput(loss, ratio, outside)


def ratio_of(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The policy's probability of each token over that before the update; e^20 at most."""
    return (logprobs - old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()


def clipped_surrogate(
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


def bounded_likelihood(
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
