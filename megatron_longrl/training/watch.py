"""Early warnings: what goes wrong in RL long before the reward shows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WINDOW = 10
"""Steps that are compared."""

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class _Sign:
    """What to look for, in the first and in the last steps of the run so far."""

    name: str
    seen: Callable[[Metrics, Metrics], bool]
    """(means of the run's first steps, means of the last steps) -> whether it is there."""
    line: str
    """For the user; may name metrics of the last steps."""


SIGNS: tuple[_Sign, ...] = (
    _Sign(
        "entropy collapse",
        lambda first, last: last["entropy/mean"] < 0.1 * first["entropy/mean"],
        "entropy has fallen to {entropy/mean:.3g} nats, below a tenth of the first steps': "
        "responses are nearly all alike; lower --lr, raise --grpo-clamp-eps-upper, or give "
        "--grpo-entropy-term-weight",
    ),
    _Sign(
        "length explosion",
        lambda first, last: last["cut_off/mean"] > max(0.5, 2 * first["cut_off/mean"]),
        "{cut_off/mean:.0%} of the responses reach --rollout-max-tokens: raise it, or give "
        "--overlong-shaping",
    ),
    _Sign(
        "reward hacking by format",
        lambda first, last: (
            last["format/mean"] > first["format/mean"] + 0.1
            and last["accuracy/mean"] < 0.8 * first["accuracy/mean"]
        ),
        "format has risen to {format/mean:.2f} while accuracy has fallen to {accuracy/mean:.2f}: "
        "give the format reward less weight",
    ),
    _Sign(
        "KL blow-up",
        lambda first, last: last["kl/mean"] > max(1.0, 10 * abs(first["kl/mean"])),
        "the divergence is {kl/mean:.3g} nats per token: lower --lr, or raise --grpo-kl-beta",
    ),
    _Sign(
        "groups without variance",
        lambda first, last: last["zero_advantage/mean"] > 0.8,
        "{zero_advantage/mean:.0%} of the groups have equal rewards and teach nothing: give "
        "--dynamic-sampling, or questions that are neither too easy nor too hard",
    ),
    _Sign(
        "trainer and engine disagree",
        lambda first, last: last["gap/mean"] > 0.1,
        "trainer and rollout engine differ by {gap/mean:.3g} nats per token: look for "
        "another precision or sampling, or give --rollout-correction token",
    ),
)


class Watch:
    """Looks at the metrics of every step; tells of a sign when it appears, and again only after it
    was gone."""

    def __init__(self, signs: Sequence[_Sign] = SIGNS) -> None:
        self._signs = signs
        self._first: list[Metrics] = []
        self._last: deque[Metrics] = deque(maxlen=WINDOW)
        self._present: set[str] = set()

    def look(self, metrics: Metrics) -> list[str]:
        """Take a step's metrics; returns a line for every sign that is new."""
        if "reward/mean" not in metrics:
            return []
        self._last.append(metrics)
        if len(self._first) < WINDOW:
            self._first.append(metrics)
            return []
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


def _means(steps: Sequence[Metrics]) -> dict[str, float]:
    """Means of what all steps have."""
    names = set(steps[0]).intersection(*steps[1:])
    return {name: sum(step[name] for step in steps) / len(steps) for name in names}
