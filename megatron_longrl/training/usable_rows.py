"""The rows that a run can use, and when too many cannot be used."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from megatron_longrl.data.curriculum import is_of_difficulty, none_of_difficulty
from megatron_longrl.data.indexed_rows import IndexedRows
from megatron_longrl.data.row_entries import Entries
from megatron_longrl.data.rows import LoadRows, Row, RowError, RowProblem
from megatron_longrl.errors import DataError
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.planner.packing import even_part
from megatron_longrl.training.sequence_length import entries_of

if TYPE_CHECKING:
    from megatron_longrl.training.runtime import Runtime

logger = logging.getLogger(__name__)

_MOST_NAMED = 50
"""Largest number of rows that are named one by one at the start; ``longrl check`` names all."""


@dataclass(frozen=True)
class UsableRows:
    """The usable rows of some files, which are read when they are asked for."""

    rows: IndexedRows[Row]
    problems: list[RowProblem]
    """The reasons why others are left out."""
    bad: IndexedRows[Row]
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
    """Find the rows that can be used, and leave out those that are known to be unusable without
    opening videos; collective over the world.

    Each rank reads its share of the rows once and keeps the numbers of those that can be used, not
    the rows. Facts that were found about rows for --seq-length are known already. The media files
    of all others are
    looked up, not opened: the lengths of videos would only be known by reading all of them. A row
    that turns out too long because of its video is skipped in its turn.

    Args:
        by_difficulty: the value of --difficulty-field.
        load: reads the rows; by default they are those of files.

    Raises:
        DataError: on every rank: under --strict-data for the first row that cannot be used, else
            when more than --max-skipped of the rows cannot.
    """
    config, groups = runtime.config, runtime.groups
    mine = _Share()
    with raise_on_all_ranks(groups.gloo_group):
        look, known = runtime.first_look, {}
        if look is not None and look.is_of(paths, folder_file):
            entries, known = look.entries, look.unusable
        else:
            every_turn = runtime.entry == "sft"
            entries = entries_of(config.data, paths, folder_file, every_turn, load)
        rank, ranks = groups.gloo_group.rank(), groups.gloo_group.size()
        chosen = by_difficulty and config.rl.difficulty_field is not None
        for number in even_part(range(len(entries)), rank, ranks):
            _sort_out(runtime, entries, number, known, mine, by_difficulty=chosen)
    everyone = gather_objects(groups.gloo_group, mine)
    problems = [problem for share in everyone for problem in share.problems]
    total = sum(share.total for share in everyone)
    usable = _indexed(entries, [share.good for share in everyone])
    with raise_on_all_ranks(groups.gloo_group):
        if problems and config.data.strict_data:
            raise DataError(f"{problems[0]}; without --strict-data it is skipped")
        _tell(problems, total, is_teller=groups.gloo_group.rank() == 0)
        if chosen and not len(usable) and any(share.others for share in everyone):
            raise none_of_difficulty(config.rl)
        if not len(usable) or len(problems) > config.data.max_skipped * total:
            raise DataError(
                f"{len(problems)} of {total} rows cannot be used, more than --max-skipped "
                f"{config.data.max_skipped:g} allows; the first: {problems[0]}"
            )
    return UsableRows(usable, problems, _indexed(entries, [share.bad for share in everyone]))


@dataclass
class _Share:
    """The result of reading a rank's share of the rows."""

    good: _Places = field(default_factory=lambda: _Places())
    bad: _Places = field(default_factory=lambda: _Places())
    problems: list[RowProblem] = field(default_factory=list)
    total: int = 0
    """Rows, and entries that give none."""
    others: int = 0
    """Rows of another difficulty."""


@dataclass
class _Places:
    """Rows by the number of their entry, and which of its rows they are."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    turns: array[int] = field(default_factory=lambda: array("i"))

    def add(self, number: int, turn: int) -> None:
        """Add a row."""
        self.numbers.append(number)
        self.turns.append(turn)


def _sort_out(
    runtime: Runtime,
    entries: Entries[Row],
    number: int,
    known: Mapping[tuple[int, int], RowProblem | None],
    share: _Share,
    *,
    by_difficulty: bool,
) -> None:
    """Read the rows of an entry, and note which can be used.

    Args:
        known: entry and turn -> what was found out about the row before.

    Raises:
        DataError: under --strict-data, of an entry that gives no row; and where the model does not
            read the row's media.
    """
    strict = runtime.config.data.strict_data
    try:
        rows = entries.rows_of(number, with_files=False)
    except RowError as error:
        if strict:
            raise
        share.problems.append(error.problem)
        share.total += 1
        return
    runtime.builder.check_media(rows)
    for turn, row in enumerate(rows):
        share.total += 1
        place = (number, turn)
        problem = known[place] if place in known else runtime.builder.problem(row)
        if problem is not None:
            share.problems.append(problem)
            share.bad.add(number, turn)
            continue
        if by_difficulty:
            try:
                if not is_of_difficulty(row, runtime.config.rl):
                    share.others += 1
                    continue
            except RowError as error:
                if strict:
                    raise
                share.problems.append(error.problem)
                continue
        share.good.add(number, turn)


def _indexed(entries: Entries[Row], parts: Sequence[_Places]) -> IndexedRows[Row]:
    numbers = [np.frombuffer(part.numbers, dtype=np.int64) for part in parts]
    turns = [np.frombuffer(part.turns, dtype=np.int32) for part in parts]
    return IndexedRows(entries, np.concatenate(numbers), np.concatenate(turns))


def _tell(problems: Sequence[RowProblem], total: int, *, is_teller: bool) -> None:
    if not problems or not is_teller:
        return
    for problem in problems[:_MOST_NAMED]:
        logger.warning("row left out: %s", problem)
    more = len(problems) - _MOST_NAMED
    logger.warning(
        "%d of %d rows are left out%s; longrl check lists all",
        *(len(problems), total, f", {more} of them not named here" if more > 0 else ""),
    )


class SkipLimit:
    """Ends a run whose samples are skipped.

    Args:
        rows: the number of rows of an epoch.
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
        """Count the skipped rows of a step; the same on all ranks.

        Args:
            iteration: the number of the step, from 1.
            taken: rows that it took.
            skipped: the number of rows among them that were skipped.
            reason: the reason of the last skip; it is asked for only where the run ends.

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
