"""The rows that a run can use, and when too many cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from megatron_longrl.data.curriculum import of_difficulty
from megatron_longrl.data.rows import LoadRows, Row, RowProblem, load_rows
from megatron_longrl.errors import DataError
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks

if TYPE_CHECKING:
    from megatron_longrl.training.runtime import Runtime

logger = logging.getLogger(__name__)

_MOST_NAMED = 50
"""Largest number of rows that are named one by one at the start; ``longrl check`` names all."""


@dataclass(frozen=True)
class UsableRows:
    """The usable rows of some files."""

    rows: list[Row]
    problems: list[RowProblem]
    """The reasons why others are left out."""
    bad: list[Row] = field(default_factory=list)
    """Rows that could be read and are left out."""

    @property
    def left_out(self) -> int:
        """Number of rows that are left out."""
        return len(self.problems)


def usable_rows(
    runtime: Runtime,
    paths: Sequence[str],
    folder_file: str = "train.jsonl",
    *,
    by_difficulty: bool = False,
    load: LoadRows | None = None,
) -> UsableRows:
    """Load rows, and leave out those that are known to be unusable without opening videos;
    collective over the world.

    Rows that were read to find --seq-length are not read again, and what was wrong with a video
    then is known. Of all others the files of the media are looked up, not opened: to know the
    lengths of videos would mean to read them all. A row that turns out too long because of its
    video is skipped in its turn.

    Args:
        by_difficulty: as --difficulty-field says.
        load: reads the rows; by default as JSON lines.

    Raises:
        DataError: on every rank: under --strict-data for the first row that cannot be used, else
            when more than --max-skipped of the rows cannot.
    """
    config, groups = runtime.config, runtime.groups
    problems: list[RowProblem] = []
    with raise_on_all_ranks(groups.gloo_group):
        strict = config.data.strict_data
        look, known = runtime.first_look, {}
        if look is not None and look.is_of(paths, folder_file):
            rows, known = look.rows, look.unusable
            problems += look.problems
        else:
            read = load or partial(
                load_rows, columns=config.data.data_columns, every_turn=runtime.entry == "sft"
            )
            rows = read(paths, folder_file, problems=None if strict else problems)
        runtime.builder.check_media(rows)
        rank, ranks = groups.gloo_group.rank(), groups.gloo_group.size()
        mine = {
            k: known[k] if k in known else runtime.builder.problem(rows[k])
            for k in range(rank, len(rows), ranks)
        }
    everyone = gather_objects(groups.gloo_group, mine)
    found = {number: problem for part in everyone for number, problem in part.items()}
    total = len(rows) + len(problems)
    with raise_on_all_ranks(groups.gloo_group):
        usable, bad = [], []
        for number, row in enumerate(rows):
            problem = found[number]
            if problem is None:
                usable.append(row)
            else:
                problems.append(problem)
                bad.append(row)
        if problems and config.data.strict_data:
            raise DataError(f"{problems[0]}; without --strict-data it is skipped")
        if by_difficulty and usable:
            usable = of_difficulty(usable, config.rl, problems=None if strict else problems)
        _tell(problems, total, is_teller=groups.gloo_group.rank() == 0)
        if not usable or len(problems) > config.data.max_skipped * total:
            raise DataError(
                f"{len(problems)} of {total} rows cannot be used, more than --max-skipped "
                f"{config.data.max_skipped:g} allows; the first: {problems[0]}"
            )
    return UsableRows(usable, problems, bad)


def _tell(problems: Sequence[RowProblem], total: int, *, is_teller: bool) -> None:
    if not problems or not is_teller:
        return
    for problem in problems[:_MOST_NAMED]:
        logger.warning("row left out: %s", problem)
    more = len(problems) - _MOST_NAMED
    logger.warning(
        "%d of %d rows are left out%s; longrl check tells all",
        *(len(problems), total, f", {more} of them not named here" if more > 0 else ""),
    )


class SkipLimit:
    """Ends a run whose samples are skipped.

    Args:
        rows: of an epoch.
        most: share of an epoch that may be skipped.
    """

    def __init__(self, rows: int, most: float) -> None:
        self._rows = rows
        self._most = most
        self._taken = 0
        self._skipped = 0
        self._lost = 0
        """Samples of the last steps that had no other."""

    def check(
        self, iteration: int, taken: int, skipped: int, reason: Callable[[], str | None]
    ) -> None:
        """Take what a step has done; the same on all ranks.

        Args:
            iteration: of the step, from 1.
            taken: rows that it took.
            skipped: of them.
            reason: of the last skip; is asked only where the run ends.

        Raises:
            DataError: all samples of a step were skipped (of two steps, where a step is one
                sample), or too many of an epoch.
        """
        if self._taken >= self._rows:
            self._taken = self._skipped = 0
        self._taken += taken
        self._skipped += skipped
        self._lost = self._lost + skipped if taken and skipped >= taken else 0
        last = None
        if self._lost > 1:
            last = f"every sample of step {iteration} was skipped"
        elif self._skipped > self._most * max(self._rows, self._taken):
            last = (
                f"{self._skipped} samples of an epoch of {self._rows} were skipped, more than "
                f"--max-skipped {self._most:g} allows"
            )
        if last is not None:
            raise DataError(f"{last}; the last one: {reason() or 'see the warnings above'}")
