"""The divergence KL(policy || reference) from the policy's own samples, and its weight.

k1, k2 and k3 are those of http://joschu.net/blog/kl-approx.html. The full divergence needs all
logits, see :func:`megatron_longrl.parallel.logprobs.selected_logprobs`.
"""

from __future__ import annotations

from torch import Tensor

KL_TYPES = ("k1", "abs", "k2", "k3")
_K3_LIMIT = 10.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """Per-token estimate, of the inputs' shape.

    Args:
        kind: one of :data:`KL_TYPES`.
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        inverse = (-difference).clamp(-20.0, 20.0)
        return (inverse.exp() - inverse - 1).clamp(-_K3_LIMIT, _K3_LIMIT)
    raise ValueError(f"KL estimator {kind} is not one of {KL_TYPES}")


def adapted_weight(
    weight: float, divergence: float, target: float, responses: int, horizon: float
) -> float:
    """The next weight of the KL term: larger when the divergence is above its target.

    Ziegler et al., https://arxiv.org/abs/1909.08593, section 2.2.

    Args:
        divergence: mean over the step.
        responses: the number of responses of the step.
        horizon: responses after which the weight has followed a constant error.
    """
    error = min(max(divergence / target - 1.0, -0.2), 0.2)
    return weight * (1.0 + error * responses / horizon)
