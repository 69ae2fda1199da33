"""Rewards of pictures: the ranks of a replica share them, with the isolation and the deadlines of
rewards of text."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rewards.pictures import packed
from megatron_longrl.rewards.result import RewardResult
from megatron_longrl.rewards.scorer import Scorer
from megatron_longrl.rewards.weighted import total

if TYPE_CHECKING:
    from megatron_longrl.config.rewards import RewardSection
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

_DIMENSIONS_OF_FILMS = 4


class PictureRewards:
    """Scores pictures of one model replica; collective over it.

    Raises:
        UserError: on every rank, when a user's function cannot be loaded.
    """

    def __init__(self, section: RewardSection, groups: ParallelGroups) -> None:
        self._group = groups.replica_gloo_group
        self._seconds = section.reward_step_timeout
        self.failed = 0
        """Pictures of the replica that got no reward."""
        with raise_on_all_ranks(groups.gloo_group):
            self._scorer = Scorer(section)
            loaded = self._scorer.load() if self._group.rank() == 0 else {}
        self._scorer.know(gather_objects(self._group, loaded)[0])
        for term in self._scorer.terms:
            if self._scorer.is_batch(term.name):
                raise UserError(
                    f"the reward {term.name} takes lists, and pictures are scored one by one: give "
                    "a function that takes an image"
                )

    def score(self, rows: Sequence[Row], pictures: Mapping[int, np.ndarray]) -> list[float | None]:
        """The reward of every picture, the same list on every rank; None where there is none.

        Args:
            rows: one for each picture.
            pictures: uint8 [height, width, 3] of this rank's share, by their numbers; films are
                [frames, height, width, 3].
        """
        rank, ranks = self._group.rank(), self._group.size()
        deadline = time.monotonic() + self._seconds
        mine = {
            number: RewardInput.of_row(row, "", uid=row.uid, index=number).with_picture(
                packed(pictures[number]), is_film=pictures[number].ndim == _DIMENSIONS_OF_FILMS
            )
            for number, row in enumerate(rows)
            if number % ranks == rank
        }
        names = [term.name for term in self._scorer.terms]
        started = {
            number: {name: self._scorer.score(name, given) for name in names}
            for number, given in mine.items()
        }
        scores = {}
        for number, works in started.items():
            results = {
                name: self._scorer.result(work, 1, deadline)[0] for name, work in works.items()
            }
            self._log_failures(mine[number], results)
            scores[number] = total(self._scorer.terms, results)
        everyone: dict[int, float | None] = {}
        for part in gather_objects(self._group, scores):
            everyone |= part
        found = [everyone[number] for number in range(len(rows))]
        self.failed += sum(score is None for score in found)
        return found

    def close(self) -> None:
        """End all processes."""
        self._scorer.close()

    def _log_failures(self, given: RewardInput, results: dict[str, RewardResult]) -> None:
        for name, result in results.items():
            if result.error is not None:
                where = f"picture {given.index} to {given.uid}"
                logger.warning("no reward %s for %s: %s", name, where, result.error)
