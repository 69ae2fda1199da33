"""Early warnings: told when a sign appears, once, and not without it."""

from __future__ import annotations

import pytest

from megatron_longrl.observability.health_checks import FIRST, WINDOW, HealthMonitor

HEALTHY = {
    "response_length/mean": 30.0,
    "reward/mean": 0.5,
    "accuracy/mean": 0.5,
    "format/mean": 0.5,
    "entropy/mean": 1.0,
    "response_length/clip_ratio": 0.1,
    "kl/mean": 0.01,
    "zero_advantage/mean": 0.2,
    "rollout_corr/logprob_diff_mean": 1e-5,
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"entropy/mean": 0.05}, "entropy collapse"),
        ({"response_length/clip_ratio": 0.6}, "length explosion"),
        ({"format/mean": 0.9, "accuracy/mean": 0.3}, "reward hacking by format"),
        ({"kl/mean": 2.0}, "KL blow-up"),
        ({"zero_advantage/mean": 0.95}, "groups without variance"),
        ({"rollout_corr/logprob_diff_mean": 0.3}, "trainer and engine disagree"),
    ],
)
def test_a_sign_is_told_once_and_again_after_it_was_gone(
    changes: dict[str, float], name: str
) -> None:
    watch = HealthMonitor()
    told: list[str] = []
    for phase in (HEALTHY, HEALTHY | changes, HEALTHY, HEALTHY | changes):
        for _ in range(2 * WINDOW):
            told += watch.check(phase)
    assert len(told) == 2
    assert all(line.startswith(f"{name}: ") for line in told)


def test_a_healthy_run_and_sft_are_quiet() -> None:
    watch = HealthMonitor()
    for _ in range(3 * WINDOW):
        assert watch.check(HEALTHY) == []
        assert watch.check({"lm loss": 9.0}) == []


def test_what_the_first_step_lacks_is_not_compared() -> None:
    """A metric that begins later has no mean of the beginning."""
    watch = HealthMonitor()
    assert watch.check({name: HEALTHY[name] for name in HEALTHY if name != "entropy/mean"}) == []
    for _ in range(WINDOW - 1):
        assert watch.check(HEALTHY) == []
    for _ in range(2 * WINDOW):
        assert watch.check(HEALTHY | {"entropy/mean": 0.05}) == []


# ---- The rewards of the first steps ----

SILENT = {
    "reward/mean": 0.0,
    "reward/accuracy": 0.0,
    "reward/format": 0.0,
    "accuracy/mean": 0.0,
    "format/mean": 0.0,
    "response_length/mean": 30.0,
    "response_length/clip_ratio": 0.0,
    "zero_advantage/mean": 1.0,
    "rewards_failed": 0.0,
}


def first_lines(changes: dict[str, float], advantage: str = "grpo") -> list[str]:
    watch = HealthMonitor(advantage)
    lines = [watch.check(SILENT | changes) for _ in range(3 * WINDOW)]
    assert all(not told for place, told in enumerate(lines, start=1) if place != FIRST), "once"
    return lines[FIRST - 1]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ["every reward is 0 (accuracy 0, format 0)", "--prompt-template think-answer", "SFT"]),
        (
            {"format/mean": 1.0, "reward/format": 1.0, "reward/mean": 0.1},
            ["earn the same (accuracy 0, format 1)", "no answer is right"],
        ),
        (
            dict.fromkeys(("reward/accuracy", "accuracy/mean", "format/mean", "reward/mean"), 1.0),
            ["earn the same (accuracy 1, format 0)", "take harder questions"],
        ),
        (
            {"response_length/clip_ratio": 0.9},
            ["90% of the responses are cut", "--rollout-max-tokens"],
        ),
        ({"rewards_failed": 8.0}, ["8 rewards a step could not be computed"]),
    ],
    ids=["nothing", "form-only", "all-right", "cut", "failed"],
)
def test_rewards_that_say_nothing(changes: dict[str, float], parts: list[str]) -> None:
    (line,) = first_lines(changes)
    assert line.startswith(f"rewards without signal: in the first {FIRST} steps")
    assert all(part in line for part in parts), line


def test_a_run_of_one_step_is_told_after_it() -> None:
    (line,) = HealthMonitor(steps=1).check(SILENT)
    assert line.startswith("rewards without signal: in this step every reward is 0")
    assert HealthMonitor(steps=2).check(SILENT) == []


def test_a_function_alone_is_named_without_advice_on_the_form() -> None:
    mine = {"reward/mean": 0.0, "reward/mine": 0.0, "reward/mine/words": 5.0}
    watch, rest = HealthMonitor(), {k: v for k, v in SILENT.items() if not k.startswith("reward/")}
    (line,) = [line for _ in range(FIRST) for line in watch.check(rest | mine)]
    assert "every reward is 0 (mine 0)" in line and "think-answer" not in line


def test_rewards_that_all_failed() -> None:
    failed = {k: v for k, v in SILENT.items() if not k.startswith("reward/")}
    watch = HealthMonitor()
    steps = [failed | {"reward/mean": 0.0, "rewards_failed": 8.0}] * FIRST
    (line,) = [line for step in steps for line in watch.check(step)]
    assert "(none was computed)" in line and "8 rewards a step could not be computed" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_advantage/mean": 0.9, "reward/mean": 0.2, "reward/accuracy": 0.2},
        {"response_length/mean": 0.0},
    ],
    ids=["some-differ", "no-responses"],
)
def test_no_line_without_reason(changes: dict[str, float]) -> None:
    watch = HealthMonitor()
    assert [watch.check(SILENT | changes) for _ in range(WINDOW)] == [[]] * WINDOW


def test_a_signal_in_one_of_the_first_steps_is_enough() -> None:
    watch = HealthMonitor()
    assert watch.check(SILENT | {"zero_advantage/mean": 0.5, "reward/mean": 0.1}) == []
    assert watch.check(SILENT) == []


def test_equal_groups_teach_where_groups_are_compared_with_each_other() -> None:
    equal = {"reward/mean": 0.5, "reward/accuracy": 0.5, "accuracy/mean": 0.5}
    assert len(first_lines(equal)) == 1
    assert first_lines(equal, "reinforce_plus_plus") == []
    assert len(first_lines({}, "reinforce_plus_plus")) == 1, "all rewards are 0"
