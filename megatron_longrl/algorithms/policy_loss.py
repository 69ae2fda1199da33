"""Policy losses per token."""

from __future__ import annotations

import torch
from torch import Tensor

_LOG_RATIO_LIMIT = 20.0


def clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_lower: float,
    clip_upper: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's clipped surrogate with asymmetric bounds and dual clipping.

    PPO: https://arxiv.org/abs/1707.06347; separate bounds: DAPO, https://arxiv.org/abs/2503.14476;
    dual clip for negative advantages: https://arxiv.org/abs/1912.09729.

    Args:
        logprobs, old_logprobs, advantages: the same shape, one entry a token.
        clip_lower, clip_upper: the ratio stays within [1 - lower, 1 + upper].
        dual_clip: the largest ratio that counts for a negative advantage; None for none.

    Returns:
        (loss, ratio, clipped as 0 or 1), each of the inputs' shape.
    """
    ratio = (logprobs - old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_lower, 1 + clip_upper)
    loss = torch.maximum(plain, bounded)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return loss, ratio, (bounded > plain).float()
