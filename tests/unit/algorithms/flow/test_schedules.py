"""Noise levels beside diffusers' scheduler."""

from __future__ import annotations

import itertools

import pytest

from megatron_longrl.algorithms.flow.schedules import flow_match_euler_sigmas, linear_sigmas


@pytest.mark.parametrize("steps", [1, 2, 10, 28, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_levels_are_those_of_diffusers(steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    ours = flow_match_euler_sigmas(steps, shift)
    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    assert [1000 * sigma for sigma in ours[:-1]] == pytest.approx(
        scheduler.timesteps.tolist(), abs=1e-3
    )


def test_ten_levels_of_shift_3_are_uneven_at_the_end() -> None:
    expected = (1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0)
    assert flow_match_euler_sigmas(10, 3.0) == pytest.approx(expected, abs=1e-4)


def test_linear_levels_are_shifted_afterwards() -> None:
    assert linear_sigmas(4, 1.0) == (1, 0.75, 0.5, 0.25, 0)
    assert linear_sigmas(2, 3.0) == pytest.approx((1, 1.5 / 2, 0))


def test_cause_2_the_changes_of_the_levels_sum_to_minus_1() -> None:
    """Long-RL takes its ten steps from a schedule of 1000, whose ten changes sum to -0.0167."""
    for sigmas in (flow_match_euler_sigmas(10, 3.0), linear_sigmas(10, 3.0)):
        changes = [end - start for start, end in itertools.pairwise(sigmas)]
        assert len(changes) == 10
        assert max(changes) < 0
        assert sum(changes) == pytest.approx(-1)
