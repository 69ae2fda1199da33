"""Early warnings: told when a sign appears, once, and not without it."""

from __future__ import annotations

import pytest

from megatron_longrl.training.watch import WINDOW, Watch

HEALTHY = {
    "reward/mean": 0.5,
    "accuracy/mean": 0.5,
    "format/mean": 0.5,
    "entropy/mean": 1.0,
    "cut_off/mean": 0.1,
    "kl/mean": 0.01,
    "zero_advantage/mean": 0.2,
    "gap/mean": 1e-5,
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"entropy/mean": 0.05}, "entropy collapse"),
        ({"cut_off/mean": 0.6}, "length explosion"),
        ({"format/mean": 0.9, "accuracy/mean": 0.3}, "reward hacking by format"),
        ({"kl/mean": 2.0}, "KL blow-up"),
        ({"zero_advantage/mean": 0.95}, "groups without variance"),
        ({"gap/mean": 0.3}, "trainer and engine disagree"),
    ],
)
def test_a_sign_is_told_once_and_again_after_it_was_gone(
    changes: dict[str, float], name: str
) -> None:
    watch = Watch()
    told: list[str] = []
    for phase in (HEALTHY, HEALTHY | changes, HEALTHY, HEALTHY | changes):
        for _ in range(2 * WINDOW):
            told += watch.look(phase)
    assert len(told) == 2
    assert all(line.startswith(f"{name}: ") for line in told)


def test_a_healthy_run_and_sft_are_quiet() -> None:
    watch = Watch()
    for _ in range(3 * WINDOW):
        assert watch.look(HEALTHY) == []
        assert watch.look({"lm loss": 9.0}) == []
