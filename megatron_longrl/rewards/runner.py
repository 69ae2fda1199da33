"""Rewards beside generation: each response is scored from the moment it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from megatron_longrl.config.reward_terms import reward_terms
from megatron_longrl.errors import UserError
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.rewards.answer import visible
from megatron_longrl.rewards.background import BackgroundLoop
from megatron_longrl.rewards.judge import COUNTERS as JUDGE_COUNTERS
from megatron_longrl.rewards.judge import Judge
from megatron_longrl.rewards.pool import Functions, WorkerPool
from megatron_longrl.rewards.registry import LIBRARIES, REWARDS, resolve
from megatron_longrl.rewards.sample import Outcome, RewardError, Sample
from megatron_longrl.rewards.totals import REPORTED, count_failures, fill
from megatron_longrl.rollout.types import Group

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
    singles: dict[tuple[str, int], Outcome | Future[list[Outcome]]] = field(default_factory=dict)
    """By reward and response."""
    batches: dict[str, Future[list[Outcome]]] = field(default_factory=dict)
    """Functions that score a whole group, by name."""

    def answers(self, group: Group) -> bool:
        """Whether it holds just the responses of a group."""
        texts = [visible(response.visible) for response in group.responses]
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
        self._terms = reward_terms(config)
        self._step_seconds = config.reward_step_timeout
        self._tolerance = config.reward_tolerance
        listed = [term.name for term in self._terms]
        self._names = [*listed, *(name for name in REPORTED if name not in listed)]
        self._files = {term.name: term.file for term in self._terms if term.file is not None}
        self._submitted: dict[int, _Submitted] = {}
        self._counts: dict[str, float] = {}
        self._loop: BackgroundLoop | None = None
        self._pool = WorkerPool(
            self._files,
            config.reward_kwargs,
            tolerance=config.reward_tolerance,
            size=config.reward_workers,
            seconds=config.reward_timeout,
        )
        self._judge: Judge | None = None
        with self._together():
            if "judge" in listed:
                self._judge = Judge(config)
            loaded = self._load(config) if self._files and self._is_first else {}
        self._functions: Functions = self._gather(loaded)[0]
        self._pool.know(self._functions)
        self.pop_counters()

    def submit(self, prompt: Prompt, index: int, text: str, n: int) -> None:
        """Begin to score response ``index`` of ``n`` to a prompt; returns at once.

        :meth:`collect` later takes the groups of these very prompts.
        """
        row = prompt.row
        sample = Sample(
            uid=prompt.uid,
            index=index,
            question=row.problem,
            response=visible(text),
            answer=row.answer,
            problem_type=row.problem_type,
            video=str(row.videos[0]) if row.videos else None,
            metadata=row.metadata,
        )
        entry = self._submitted.setdefault(id(prompt), _Submitted(prompt, n))
        entry.samples[index] = sample
        for name in self._names:
            if self._is_batch(name):
                if len(entry.samples) == entry.size:
                    group = [entry.samples[place] for place in sorted(entry.samples)]
                    entry.batches[name] = self._start(name, group)
            else:
                entry.singles[name, index] = self._score(name, sample)

    def collect(self, groups: Sequence[Group]) -> None:
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
        parts = self._gather((scored, self._judge.pop_counters() if self._judge else {}))
        everyone: dict[int, list[dict[str, Outcome]]] = {}
        for outcomes, counts in parts:
            everyone.update(outcomes)
            for name, count in counts.items():
                self._counts[name] += count
        for place, group in enumerate(groups):
            failed, late = count_failures(self._terms, everyone[place])
            self._counts["rewards_failed"] += failed
            self._counts["rewards_timed_out"] += late
            fill(group, self._terms, everyone[place])

    def pop_counters(self) -> dict[str, float]:
        """Of the replica since the last call: ``rewards_failed``, ``rewards_timed_out`` (responses
        that were left out, and those of them that a deadline met); ``judge/…`` where there is one.
        """
        counts = self._counts
        names = ("rewards_failed", "rewards_timed_out", *(JUDGE_COUNTERS if self._judge else ()))
        self._counts = dict.fromkeys(names, 0)
        return counts

    def close(self) -> None:
        """End all processes and connections. Idempotent."""
        if self._loop is None:
            return
        self._loop.run(self._pool.close())
        if self._judge is not None:
            self._loop.run(self._judge.close())
        self._loop.close()
        self._loop = None

    # ---- Beginning ----

    def _load(self, config: Config) -> Functions:
        try:
            functions = self._background().run(self._pool.load())
        except RewardError as error:
            self.close()
            raise UserError(str(error)) from None
        used = {option for function in functions.values() for option in function["options"]}
        unknown = sorted(config.reward_kwargs.keys() - used)
        if unknown:
            self.close()
            raise UserError(
                f"reward_kwargs: no function of --reward-function takes an argument '{unknown[0]}'"
            )
        return functions

    def _background(self) -> BackgroundLoop:
        if self._loop is None:
            self._loop = BackgroundLoop()
        return self._loop

    def _is_batch(self, name: str) -> bool:
        return bool(self._functions.get(name, {}).get("batch"))

    def _score(self, name: str, sample: Sample) -> Outcome | Future[list[Outcome]]:
        """At once, where that takes no time."""
        if name in self._files:
            return self._start(name, [sample])
        try:
            meant = resolve(name, sample)
            if meant in LIBRARIES or meant == "judge":
                return self._start(meant, [sample])
            return Outcome(REWARDS[meant](sample, self._tolerance))
        except RewardError as error:
            return Outcome.failure(str(error))

    def _start(self, name: str, samples: Sequence[Sample]) -> Future[list[Outcome]]:
        if name == "judge":
            return self._background().start(self._ask(samples[0]))
        return self._background().start(self._pool.score(name, samples))

    async def _ask(self, sample: Sample) -> list[Outcome]:
        assert self._judge is not None
        return [await self._judge.score(sample)]

    # ---- Waiting ----

    def _claim(self, groups: Sequence[Group]) -> dict[int, _Submitted]:
        """The groups, by place, whose responses were all submitted on this rank."""
        mine = {}
        for place, group in enumerate(groups):
            entry = self._submitted.pop(id(group.prompt), None)
            if entry is not None and entry.answers(group):
                mine[place] = entry
            elif entry is not None:
                entry.cancel()
        return mine

    def _submit_all(self, group: Group) -> _Submitted:
        for index, response in enumerate(group.responses):
            self.submit(group.prompt, index, response.visible, len(group.responses))
        return self._submitted.pop(id(group.prompt))

    def _wait(self, mine: dict[int, _Submitted]) -> dict[int, list[dict[str, Outcome]]]:
        deadline = time.monotonic() + self._step_seconds
        scored = {}
        for place, entry in mine.items():
            of_group: list[dict[str, Outcome]] = [{} for _ in entry.samples]
            for (name, index), work in entry.singles.items():
                done = work if isinstance(work, Outcome) else self._result(work, 1, deadline)[0]
                of_group[index][name] = done
            for name, batch in entry.batches.items():
                for index, outcome in enumerate(self._result(batch, entry.size, deadline)):
                    of_group[index][name] = outcome
            for index, outcomes in enumerate(of_group):
                self._log_failures(entry.samples[index], outcomes)
            scored[place] = of_group
        return scored

    def _result(
        self, work: Future[list[Outcome]], count: int, deadline: float
    ) -> Sequence[Outcome]:
        try:
            return work.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            work.cancel()
            error = f"no score {self._step_seconds:g} s after generation (--reward-step-timeout)"
            return [Outcome.failure(error, timed_out=True)] * count
        except Exception as error:
            return [Outcome.failure(f"was not computed: {error!r}")] * count

    def _log_failures(self, sample: Sample, outcomes: Mapping[str, Outcome]) -> None:
        listed = {term.name for term in self._terms}
        for name, outcome in outcomes.items():
            if outcome.error is not None:
                place = f"{self._files[name]}:{name}" if name in self._files else name
                level = logging.WARNING if name in listed else logging.DEBUG
                where = f"response {sample.index} to {sample.uid}"
                logger.log(level, "no reward %s for %s: %s", place, where, outcome.error)

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
