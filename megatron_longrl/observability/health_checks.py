"""Early warnings: what goes wrong in RL long before the reward shows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_longrl.config.algorithm_parts import ADVANTAGES

WINDOW = 10
"""Steps that are compared."""

FIRST = 2
"""Steps after which a run whose rewards say nothing is told so; fewer where it has fewer."""

GAP_LIMIT = 0.1
"""Nats per token by which trainer and engine may differ, in the mean of the last steps."""

_EQUAL_GROUPS = "groups without variance"
_NO_SIGNAL = "rewards without signal"
_LOOK_AT_ANSWERS = frozenset(
    ("accuracy", "format", "choice", "exact", "numeric", "math", "temporal_iou", "ordering")
)

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class HealthCheck:
    """A condition on the metrics of the first and the last steps of the run so far."""

    name: str
    seen: Callable[[Metrics, Metrics], bool]
    """(means of the run's first steps, means of the last steps) -> whether it is there."""
    line: str
    """Line for the user, which may name metrics of the last steps."""


HEALTH_CHECKS: tuple[HealthCheck, ...] = (
    HealthCheck(
        "entropy collapse",
        lambda first, last: last["entropy/mean"] < 0.1 * first["entropy/mean"],
        "entropy has fallen to {entropy/mean:.3g} nats, below a tenth of the first steps': "
        "responses are nearly all alike; lower --lr, raise --grpo-clamp-eps-upper, or give "
        "--grpo-entropy-term-weight",
    ),
    HealthCheck(
        "length explosion",
        lambda first, last: (
            last["response_length/clip_ratio"] > max(0.5, 2 * first["response_length/clip_ratio"])
        ),
        "{response_length/clip_ratio:.0%} of the responses reach --rollout-max-tokens: raise it, "
        "or give --overlong-shaping",
    ),
    HealthCheck(
        "reward hacking by format",
        lambda first, last: (
            last["format/mean"] > first["format/mean"] + 0.1
            and last["accuracy/mean"] < 0.8 * first["accuracy/mean"]
        ),
        "format has risen to {format/mean:.2f} while accuracy has fallen to {accuracy/mean:.2f}: "
        "give the format reward less weight",
    ),
    HealthCheck(
        "KL blow-up",
        lambda first, last: last["kl/mean"] > max(1.0, 10 * abs(first["kl/mean"])),
        "the divergence is {kl/mean:.3g} nats per token: lower --lr, or raise --grpo-kl-beta",
    ),
    HealthCheck(
        _EQUAL_GROUPS,
        lambda first, last: last["zero_advantage/mean"] > 0.8,
        "{zero_advantage/mean:.0%} of the groups have equal rewards and teach nothing: take "
        "questions that are neither too easy nor too hard, or give --dynamic-sampling, which draws "
        "further questions in place of such groups",
    ),
    HealthCheck(
        "trainer and engine disagree",
        lambda first, last: last["rollout_corr/logprob_diff_mean"] > GAP_LIMIT,
        "trainer and rollout engine differ by {rollout_corr/logprob_diff_mean:.3g} nats per token: "
        "look for another precision or sampling, or give --rollout-correction token",
    ),
)


class HealthMonitor:
    """Looks at the metrics of every step; reports a sign when it appears, and again only after it
    has gone.

    Args:
        advantage: the value of --advantage. Where it compares the responses of a group, a group of
            equal rewards teaches nothing.
        steps: the number of steps to come.
    """

    def __init__(
        self,
        advantage: str = "grpo",
        signs: Sequence[HealthCheck] = HEALTH_CHECKS,
        steps: int = FIRST,
    ) -> None:
        self._first_steps = min(FIRST, steps)
        self._by_group = ADVANTAGES.find(advantage).compares_group
        self._signs = [sign for sign in signs if self._by_group or sign.name != _EQUAL_GROUPS]
        self._first: list[Metrics] = []
        self._last: deque[Metrics] = deque(maxlen=WINDOW)
        self._present: set[str] = set()

    def check(self, metrics: Metrics) -> list[str]:
        """Take a step's metrics; returns a line for every sign that is new."""
        if "reward/mean" not in metrics:
            return []
        self._last.append(metrics)
        if len(self._first) < WINDOW:
            self._first.append(metrics)
            return self._look_at_rewards() if len(self._first) == self._first_steps else []
        first, last = _means(self._first), _means(list(self._last))
        lines = []
        for sign in self._signs:
            try:
                seen = sign.seen(first, last)
            except KeyError:  # This run does not measure it.
                continue
            if seen and sign.name not in self._present:
                lines.append(f"{sign.name}: {sign.line.format_map(last)}")
            (self._present.add if seen else self._present.discard)(sign.name)
        return lines

    def _look_at_rewards(self) -> list[str]:
        """A line where the rewards of the first steps say nothing."""
        if not all(step.get("response_length/mean") for step in self._first):
            return []  # A step without responses; why, others say.
        is_zero = all(
            step["reward/mean"] == 0 and not any(_terms(step).values()) for step in self._first
        )
        is_equal = all(step.get("zero_advantage/mean") == 1 for step in self._first)
        if not is_zero and not (is_equal and self._by_group):
            return []
        self._present.add(_EQUAL_GROUPS)  # That would say the same again.
        steps = f"the first {self._first_steps} steps" if self._first_steps > 1 else "this step"
        return [f"{_NO_SIGNAL}: in {steps} {_without_signal(_means(self._first), is_zero)}"]


def _terms(metrics: Metrics) -> dict[str, float]:
    """Mean of each reward, by name; what else a function reports is left out."""
    return {
        name.removeprefix("reward/"): value
        for name, value in sorted(metrics.items())
        if name.startswith("reward/") and name.count("/") == 1 and name != "reward/mean"
    }


def _without_signal(means: Metrics, is_zero: bool) -> str:
    """Return the problem of the first steps, and the remedy."""
    terms = _terms(means)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in terms.items()) or "none was computed"
    what = "every reward is 0" if is_zero else "all responses to a question earn the same"
    remedies = []
    failed = means.get("rewards_failed", 0.0)
    if failed:
        remedies.append(f"{failed:.0f} rewards a step could not be computed, see 'no reward' above")
    if means.get("response_length/clip_ratio", 0.0) > 0.5:
        remedies.append(
            f"{means['response_length/clip_ratio']:.0%} of the responses are cut before they end, "
            "raise --rollout-max-tokens"
        )
    if means.get("format/mean") == 0 and _LOOK_AT_ANSWERS & terms.keys():
        remedies.append(
            "no response has the form <think>…</think><answer>…</answer>, in which an answer is "
            "found most surely: ask for it with --prompt-template think-answer, or train by SFT "
            "first"
        )
    elif means.get("accuracy/mean") == 0 and _LOOK_AT_ANSWERS & terms.keys():
        remedies.append("no answer is right: take easier questions, or train by SFT first")
    elif means.get("accuracy/mean") == 1:
        remedies.append("every answer is right: take harder questions")
    remedies.append("or choose another reward (--rewards, --reward-function)")
    return "; ".join([f"{what} ({shown}), so that nothing is learned", *remedies])


def _means(steps: Sequence[Metrics]) -> dict[str, float]:
    """Means of what all steps have."""
    names = set(steps[0]).intersection(*steps[1:])
    return {name: sum(step[name] for step in steps) / len(steps) for name in names}
