"""Rewards beside generation: each response is scored from the moment it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from megatron_longrl.data.answer import visible
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.rewards.judge import COUNTERS as JUDGE_COUNTERS
from megatron_longrl.rewards.sample import Outcome, Sample
from megatron_longrl.rewards.scorer import Scorer, Scores
from megatron_longrl.rewards.totals import REPORTED, count_failures, fill
from megatron_longrl.rewards.weighted import total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from megatron_longrl.config import Config
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Submitted:
    """The responses to a prompt that this rank scores."""

    prompt: Prompt
    """Also keeps its id from being used again."""
    size: int
    samples: dict[int, Sample] = field(default_factory=dict)
    singles: dict[tuple[str, int], Scores] = field(default_factory=dict)
    """By reward and response."""
    batches: dict[str, Future[list[Outcome]]] = field(default_factory=dict)
    """Functions that score a whole group, by name."""

    def answers(self, group: RolloutGroup) -> bool:
        """Whether it holds just the responses of a group."""
        texts = [visible(response.visible) for response in group.rollouts]
        mine = {index: sample.response for index, sample in self.samples.items()}
        return self.size == len(texts) and mine == dict(enumerate(texts))

    def cancel(self) -> None:
        """Nobody wants the scores."""
        for work in (*self.singles.values(), *self.batches.values()):
            if isinstance(work, Future):
                work.cancel()


class RewardRunner:
    """Scores the responses of one model replica.

    Construction, :meth:`collect` and :meth:`pop_counters` are the same on all ranks of the replica,
    and the first two collective; :meth:`submit` is called by the ranks that receive responses, and
    only they compute. Nothing that a reward does ends a step: its sample is left out, logged and
    counted.

    Args:
        control: gloo group of the replica; None for a single rank.

    Raises:
        UserError: on every rank, when a user's function or the judge's prompt cannot be loaded.
    """

    def __init__(self, config: Config, control: ProcessGroup | None = None) -> None:
        self._control = control
        self._is_first = control is None or control.rank() == 0
        self._step_seconds = config.reward_step_timeout
        self._submitted: dict[int, _Submitted] = {}
        self._counts: dict[str, float] = {}
        with self._together():
            self._scorer = Scorer(config)
            loaded = self._scorer.load() if self._is_first else {}
        self._scorer.know(self._gather(loaded)[0])
        listed = [term.name for term in self._scorer.terms]
        self._names = [*listed, *(name for name in REPORTED if name not in listed)]
        self.pop_counters()

    def submit(self, prompt: Prompt, index: int, text: str, n: int) -> None:
        """Begin to score response ``index`` of ``n`` to a prompt; returns at once.

        :meth:`collect` later takes the groups of these very prompts.
        """
        sample = Sample.of_row(prompt.row, visible(text), uid=prompt.uid, index=index)
        entry = self._submitted.setdefault(id(prompt), _Submitted(prompt, n))
        entry.samples[index] = sample
        for name in self._names:
            if self._scorer.is_batch(name):
                if len(entry.samples) == entry.size:
                    group = [entry.samples[place] for place in sorted(entry.samples)]
                    entry.batches[name] = self._scorer.start(name, group)
            else:
                entry.singles[name, index] = self._scorer.score(name, sample)

    def collect(self, groups: Sequence[RolloutGroup]) -> None:
        """Wait for all scores of the groups, the same list on every rank, and fill them in.

        Every group gets ``rewards`` [n], 0 where ``valid`` [n] is False, ``components``, and its
        mean ``accuracy`` and ``format`` as metrics. What no rank has submitted is scored by the
        first one.
        """
        mine = self._claim(groups)
        taken = {place for places in self._gather(set(mine)) for place in places}
        with self._together():
            if self._is_first:
                for place in set(range(len(groups))) - taken:
                    mine[place] = self._submit_all(groups[place])
            scored = self._wait(mine)
        judge = self._scorer.judge
        parts = self._gather((scored, judge.pop_counters() if judge else {}))
        everyone: dict[int, list[dict[str, Outcome]]] = {}
        for outcomes, counts in parts:
            everyone.update(outcomes)
            for name, count in counts.items():
                self._counts[name] += count
        for place, group in enumerate(groups):
            failed, late = count_failures(self._scorer.terms, everyone[place])
            self._counts["rewards_failed"] += failed
            self._counts["rewards_timed_out"] += late
            fill(group, self._scorer.terms, everyone[place])

    def pop_counters(self) -> dict[str, float]:
        """Of the replica since the last call: ``rewards_failed``, ``rewards_timed_out`` (responses
        that were left out, and those of them that a deadline met); ``judge/…`` where there is one.
        """
        counts = self._counts
        names = (
            "rewards_failed",
            "rewards_timed_out",
            *(JUDGE_COUNTERS if self._scorer.judge else ()),
        )
        self._counts = dict.fromkeys(names, 0)
        return counts

    def close(self) -> None:
        """End all processes and connections. Idempotent."""
        self._scorer.close()

    # ---- Waiting ----

    def _claim(self, groups: Sequence[RolloutGroup]) -> dict[int, _Submitted]:
        """The groups, by place, whose responses were all submitted on this rank."""
        mine = {}
        for place, group in enumerate(groups):
            entry = self._submitted.pop(id(group.prompt), None)
            if entry is not None and entry.answers(group):
                mine[place] = entry
            elif entry is not None:
                entry.cancel()
        return mine

    def _submit_all(self, group: RolloutGroup) -> _Submitted:
        for index, response in enumerate(group.rollouts):
            self.submit(group.prompt, index, response.visible, len(group.rollouts))
        return self._submitted.pop(id(group.prompt))

    def _wait(self, mine: dict[int, _Submitted]) -> dict[int, list[dict[str, Outcome]]]:
        deadline = time.monotonic() + self._step_seconds
        scored = {}
        for place, entry in mine.items():
            of_group: list[dict[str, Outcome]] = [{} for _ in entry.samples]
            for (name, index), work in entry.singles.items():
                of_group[index][name] = self._scorer.result(work, 1, deadline)[0]
            for name, batch in entry.batches.items():
                for index, outcome in enumerate(self._scorer.result(batch, entry.size, deadline)):
                    of_group[index][name] = outcome
            for index, outcomes in enumerate(of_group):
                self._log_failures(entry.samples[index], outcomes)
            scored[place] = of_group
        return scored

    def _log_failures(self, sample: Sample, outcomes: Mapping[str, Outcome]) -> None:
        listed = {term.name for term in self._scorer.terms}
        for name, outcome in outcomes.items():
            if outcome.error is not None:
                place = f"{self._scorer.files[name]}:{name}" if name in self._scorer.files else name
                level = logging.WARNING if name in listed else logging.DEBUG
                where = f"response {sample.index} to {sample.uid}"
                logger.log(level, "no reward %s for %s: %s", place, where, outcome.error)
        if total(self._scorer.terms, outcomes) is None and all(
            outcomes[name].score is not None for name in listed
        ):
            logger.warning(
                "no reward for response %d to %s: the weighted sum is no finite number in float32",
                *(sample.index, sample.uid),
            )

    # ---- Between ranks ----

    def _gather(self, value: T) -> list[T]:
        return [value] if self._control is None else gather_objects(self._control, value)

    def _together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._control is None else together(self._control)


def build_rewards(config: Config, groups: ParallelGroups) -> RewardRunner:
    """The runner of this rank's replica; collective over the world.

    Raises:
        UserError: on every rank, when it cannot be made on one.
    """
    runner: RewardRunner | None = None
    try:
        with together(groups.control):
            runner = RewardRunner(config, groups.replica_control)
    except UserError:
        if runner is not None:
            runner.close()
        raise
    return runner
