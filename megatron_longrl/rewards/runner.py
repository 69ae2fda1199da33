"""Rewards beside generation: each rollout is scored from the moment it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from megatron_longrl.data.answer import without_end_token
from megatron_longrl.errors import UserError
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.experience.rollouts import RewardedGroup, Rollout, RolloutGroup
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rewards.judge import COUNTERS as JUDGE_COUNTERS
from megatron_longrl.rewards.result import RewardResult
from megatron_longrl.rewards.scorer import Scorer, Scores
from megatron_longrl.rewards.totals import REPORTED, count_failures, rewarded_group
from megatron_longrl.rewards.weighted import total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from megatron_longrl.config.rewards import RewardSection
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Submitted:
    """The rollouts of a group that this rank scores."""

    size: int
    inputs: dict[int, RewardInput] = field(default_factory=dict)
    """Inputs of the rewards by the index of the rollout."""
    singles: dict[tuple[str, int], Scores] = field(default_factory=dict)
    """Scores by the name of the reward and the index of the rollout."""
    batches: dict[str, Future[list[RewardResult]]] = field(default_factory=dict)
    """Functions that score a whole group, by name."""

    def answers(self, group: RolloutGroup) -> bool:
        """Whether it holds just the rollouts of a group."""
        texts = [without_end_token(rollout.reward_text) for rollout in group.rollouts]
        mine = {index: given.response for index, given in self.inputs.items()}
        return self.size == len(texts) and mine == dict(enumerate(texts))

    def cancel(self) -> None:
        """Cancel scores that are no longer needed."""
        for work in (*self.singles.values(), *self.batches.values()):
            if isinstance(work, Future):
                work.cancel()


class RewardRunner:
    """Scores the rollouts of one model replica.

    Construction, :meth:`collect` and :meth:`pop_counters` are the same on all ranks of the replica,
    and the first two collective; :meth:`submit` is called by the ranks that receive rollouts, and
    only they compute. No error of a reward ends a step: its rollout is left out, logged and
    counted.

    Args:
        gloo_group: gloo group of the replica; None for a single rank.

    Raises:
        UserError: on every rank, when a user's function or the judge's prompt cannot be loaded.
    """

    def __init__(self, reward: RewardSection, gloo_group: ProcessGroup | None = None) -> None:
        self._gloo_group = gloo_group
        self._is_first = gloo_group is None or gloo_group.rank() == 0
        self._step_seconds = reward.reward_step_timeout
        self._submitted: dict[str, _Submitted] = {}
        """Submitted groups by their ids."""
        self._counts: dict[str, float] = {}
        with self._together():
            self._scorer = Scorer(reward)
            loaded = self._scorer.load() if self._is_first else {}
        self._scorer.know(self._gather(loaded)[0])
        listed = [term.name for term in self._scorer.terms]
        self._names = [*listed, *(name for name in REPORTED if name not in listed)]
        self.pop_counters()

    def submit(self, prompt: Prompt, rollout: Rollout, group_size: int) -> None:
        """Begin to score one of the ``group_size`` rollouts to a prompt; returns at once.

        :meth:`collect` later takes the groups of these very rollouts.
        """
        index, text = rollout.index, without_end_token(rollout.reward_text)
        given = RewardInput.of_row(prompt.row, text, uid=prompt.uid, index=index)
        entry = self._submitted.setdefault(rollout.group_id, _Submitted(group_size))
        entry.inputs[index] = given
        for name in self._names:
            if self._scorer.is_batch(name):
                if len(entry.inputs) == entry.size:
                    group = [entry.inputs[number] for number in sorted(entry.inputs)]
                    entry.batches[name] = self._scorer.start(name, group)
            else:
                entry.singles[name, index] = self._scorer.score(name, given)

    def collect(self, groups: Sequence[RolloutGroup]) -> list[RewardedGroup]:
        """Wait for all scores of the groups, the same list on every rank, whose ids all differ.

        The first rank scores rollouts that no rank has submitted.

        Returns:
            The groups with their rewards, see
            :func:`~megatron_longrl.rewards.totals.rewarded_group`.
        """
        mine = self._claim(groups)
        taken = {name for names in self._gather(set(mine)) for name in names}
        with self._together():
            if self._is_first:
                for group in groups:
                    if group.group_id not in taken:
                        mine[group.group_id] = self._submit_all(group)
            scored = self._wait(mine)
        judge = self._scorer.judge
        parts = self._gather((scored, judge.pop_counters() if judge else {}))
        everyone: dict[str, list[dict[str, RewardResult]]] = {}
        for results, counts in parts:
            everyone.update(results)
            for name, count in counts.items():
                self._counts[name] += count
        terms = self._scorer.terms
        for group in groups:
            failed, late = count_failures(terms, everyone[group.group_id])
            self._counts["rewards_failed"] += failed
            self._counts["rewards_timed_out"] += late
        return [rewarded_group(group, terms, everyone[group.group_id]) for group in groups]

    def pop_counters(self) -> dict[str, float]:
        """Return the replica's counts since the last call: ``rewards_failed``,
        ``rewards_timed_out`` (responses that were left out, and those of them that a deadline met),
        and the judge's ``judge/…``."""
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

    def _claim(self, groups: Sequence[RolloutGroup]) -> dict[str, _Submitted]:
        """The groups, by their id, whose rollouts were all submitted on this rank."""
        mine = {}
        for group in groups:
            entry = self._submitted.pop(group.group_id, None)
            if entry is not None and entry.answers(group):
                mine[group.group_id] = entry
            elif entry is not None:
                entry.cancel()
        return mine

    def _submit_all(self, group: RolloutGroup) -> _Submitted:
        for rollout in group.rollouts:
            self.submit(group.prompt, rollout, len(group.rollouts))
        return self._submitted.pop(group.group_id)

    def _wait(self, mine: Mapping[str, _Submitted]) -> dict[str, list[dict[str, RewardResult]]]:
        deadline = time.monotonic() + self._step_seconds
        scored = {}
        for group_id, entry in mine.items():
            of_group: list[dict[str, RewardResult]] = [{} for _ in entry.inputs]
            for (name, index), work in entry.singles.items():
                of_group[index][name] = self._scorer.result(work, 1, deadline)[0]
            for name, batch in entry.batches.items():
                for index, result in enumerate(self._scorer.result(batch, entry.size, deadline)):
                    of_group[index][name] = result
            for index, results in enumerate(of_group):
                self._log_failures(entry.inputs[index], results)
            scored[group_id] = of_group
        return scored

    def _log_failures(self, given: RewardInput, results: Mapping[str, RewardResult]) -> None:
        listed = {term.name for term in self._scorer.terms}
        for name, result in results.items():
            if result.error is not None:
                place = f"{self._scorer.files[name]}:{name}" if name in self._scorer.files else name
                level = logging.WARNING if name in listed else logging.DEBUG
                where = f"response {given.index} to {given.uid}"
                logger.log(level, "no reward %s for %s: %s", place, where, result.error)
        if total(self._scorer.terms, results) is None and all(
            results[name].score is not None for name in listed
        ):
            logger.warning(
                "no reward for response %d to %s: the weighted sum is no finite number in float32",
                *(given.index, given.uid),
            )

    # ---- Between ranks ----

    def _gather(self, value: T) -> list[T]:
        return [value] if self._gloo_group is None else gather_objects(self._gloo_group, value)

    def _together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._gloo_group is None else raise_on_all_ranks(self._gloo_group)


def build_rewards(reward: RewardSection, groups: ParallelGroups) -> RewardRunner:
    """The runner of this rank's replica; collective over the world.

    Raises:
        UserError: on every rank, when it cannot be made on one.
    """
    runner: RewardRunner | None = None
    try:
        with raise_on_all_ranks(groups.gloo_group):
            runner = RewardRunner(reward, groups.replica_gloo_group)
    except UserError:
        if runner is not None:
            runner.close()
        raise
    return runner
