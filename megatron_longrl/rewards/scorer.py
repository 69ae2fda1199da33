"""Scores samples under all rewards that are asked for: the built-in ones at once, others beside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from megatron_longrl.errors import UserError
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.media.foreign_errors import described
from megatron_longrl.rewards.background import BackgroundLoop
from megatron_longrl.rewards.judge import Judge
from megatron_longrl.rewards.pool import Functions, WorkerPool
from megatron_longrl.rewards.registry import JUDGE, REWARDS, resolve, setting_names
from megatron_longrl.rewards.result import RewardError, RewardResult
from megatron_longrl.rewards.terms import reward_terms

if TYPE_CHECKING:
    from megatron_longrl.config.rewards import RewardSection

Scores = RewardResult | Future[list[RewardResult]]
"""Scores of a sample: known ones, and futures."""


class Scorer:
    """Knows how each reward is computed: here, in a child process, by a user's code, by a judge.

    Nothing is started before it is needed. Nothing that a reward does raises: an outcome says what
    went wrong.

    Raises:
        UserError: the judge's prompt cannot be used.
    """

    def __init__(self, settings: RewardSection) -> None:
        self.terms = reward_terms(settings)
        self.files = {term.name: term.file for term in self.terms if term.file is not None}
        """Files of the users' functions, by name."""
        self._settings = settings
        self._values = {name: getattr(settings, name) for name in sorted(setting_names())}
        self._functions: Functions = {}
        self._loop: BackgroundLoop | None = None
        self._pool = WorkerPool(
            self.files,
            settings.reward_kwargs,
            settings=self._values,
            size=settings.reward_workers,
            seconds=settings.reward_timeout,
        )
        is_judged = any(term.name == JUDGE for term in self.terms)
        # A row may ask for a judge, too, where one is known.
        is_judged |= settings.judge_url is not None and settings.judge_model is not None
        self.judge = Judge(settings) if is_judged else None

    def load(self) -> Functions:
        """Load the users' functions; the argument of :meth:`know`, here or in another process.

        Raises:
            UserError: one of them cannot be loaded, or an argument of ``reward_kwargs`` fits none.
        """
        if not self.files:
            return {}
        try:
            functions = self._background().run(self._pool.load())
        except RewardError as error:
            self.close()
            raise UserError(str(error)) from None
        used = {option for function in functions.values() for option in function["options"]}
        unknown = sorted(self._settings.reward_kwargs.keys() - used)
        if unknown:
            self.close()
            raise UserError(
                "--reward-kwargs: no function of --reward-function takes an argument "
                f"'{unknown[0]}'"
            )
        return functions

    def know(self, functions: Functions) -> None:
        """Take over what :meth:`load` has found, perhaps on another rank."""
        self._functions = functions
        self._pool.know(functions)

    def is_batch(self, name: str) -> bool:
        """Whether a reward is a function that scores all responses to a prompt together."""
        return bool(self._functions.get(name, {}).get("batch"))

    def score(self, name: str, sample: RewardInput) -> Scores:
        """Score a sample with a reward that is no batch function, at once where that takes no
        time."""
        if name in self.files:
            return self.start(name, [sample])
        try:
            meant = resolve(name, sample)
            if meant == JUDGE and self.judge is None:
                raise RewardError(
                    "the row asks for a judge: give --judge-url and --judge-model to score it"
                )
            if meant == JUDGE or REWARDS.find(meant).in_worker:
                return self.start(meant, [sample])
            return RewardResult(REWARDS.find(meant).compute(sample, self._values))
        except RewardError as error:
            return RewardResult.failure(str(error))
        except MemoryError:
            raise
        except Exception as error:  # It costs its own sample, as a user's function does.
            return RewardResult.failure(described(error, f"reward {name} for {sample.uid}"))

    def start(self, name: str, samples: Sequence[RewardInput]) -> Future[list[RewardResult]]:
        """Begin to score samples; a batch function gets all that are given."""
        if name == "judge":
            return self._background().start(self._ask(samples[0]))
        return self._background().start(self._pool.score(name, samples))

    def result(
        self, work: Scores, count: int = 1, deadline: float | None = None
    ) -> Sequence[RewardResult]:
        """Wait for what was begun.

        Args:
            count: samples that it scores.
            deadline: a time of ``time.monotonic()``; None waits as long as every reward may take.
        """
        if isinstance(work, RewardResult):
            return [work]
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            return work.result(left)
        except TimeoutError:
            work.cancel()
            seconds = self._settings.reward_step_timeout
            error = f"no score {seconds:g} s after generation (--reward-step-timeout)"
            return [RewardResult.failure(error, timed_out=True)] * count
        except Exception as error:
            return [RewardResult.failure(f"was not computed: {error!r}")] * count

    def close(self) -> None:
        """End all processes and connections. Idempotent."""
        if self._loop is None:
            return
        self._loop.run(self._pool.close())
        if self.judge is not None:
            self._loop.run(self.judge.close())
        self._loop.close()
        self._loop = None

    async def _ask(self, sample: RewardInput) -> list[RewardResult]:
        assert self.judge is not None
        return [await self.judge.score(sample)]

    def _background(self) -> BackgroundLoop:
        if self._loop is None:
            self._loop = BackgroundLoop()
        return self._loop
