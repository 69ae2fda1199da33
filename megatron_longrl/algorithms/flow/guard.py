"""GRPO-Guard: ratios of all steps alike, so that one clipping range fits them.

https://arxiv.org/abs/2510.22319
"""

from __future__ import annotations

from torch import Tensor

from megatron_longrl.algorithms.flow.densities import Reduction, divergence


def guarded_log_ratio(
    log_ratio: Tensor, mean: Tensor, old_mean: Tensor, deviation: Tensor, reduction: Reduction
) -> Tensor:
    """[b]: the log-ratio without its bias below 0, in units that do not depend on the step.

    Args:
        log_ratio: [b], of the step's Gaussians.
        mean, old_mean: [b, ...]: of the step now, and when it was sampled.
        deviation: [b, 1, ...]: of the step.
    """
    bias = divergence(mean, old_mean, deviation, reduction)
    return (log_ratio + bias) * deviation.flatten(1)[:, 0]


def step_weight(change: Tensor) -> Tensor:
    """[b]: the factor of a step's loss, by which all steps have gradients of the same size.

    Args:
        change: [b, 1, ...]: of the noise level, below 0.
    """
    return -1 / change.flatten(1)[:, 0]
