"""The steps of sampling that are stochastic, and trained."""

from __future__ import annotations


def moving_window(iteration: int, steps: int, size: int, stride: int, interval: int) -> range:
    """MixGRPO's window, which goes from the noisiest steps to the last ones and stays there.

    https://arxiv.org/abs/2507.21802, section 3.2.

    Args:
        iteration: updates of the run before this one.
        steps: the number of sampling steps that may be stochastic.
        size: steps of the window.
        stride: steps that the window moves at once.
        interval: iterations between two moves.
    """
    return range(start := min(iteration // interval * stride, steps - size), start + size)
