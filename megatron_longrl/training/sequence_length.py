"""The length of rows that the data need, where ``--seq-length`` is not given."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_longrl.config import Config, Entry
from megatron_longrl.config.data import DataSection
from megatron_longrl.data.cell_files import CellFiles
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.row_entries import Entries, ListedEntries
from megatron_longrl.data.rows import LoadRows, Row, RowError, RowProblem, index_rows
from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video.probe import Probed, probe, remember
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks

logger = logging.getLogger(__name__)

MOST_ROWS = 512
"""Rows that are looked into; of more, so many at equal distances."""

MARGIN = 1.25
"""Factor by which rows that were not read may be longer than those that were."""

MULTIPLE = 64


@dataclass(frozen=True)
class FirstLook:
    """The rows that were read to find the length, and where all rows are."""

    paths: tuple[str, ...]
    folder_file: str
    entries: Entries[Row]
    unusable: dict[tuple[int, int], RowProblem]
    """Problems of the rows that were read, by their entry, and which of its rows they are."""

    def is_of(self, paths: Sequence[str], folder_file: str) -> bool:
        """Whether these files were read."""
        return (self.paths, self.folder_file) == (tuple(paths), folder_file)


def with_sequence_length(
    config: Config,
    builder: PromptBuilder,
    groups: ParallelGroups,
    entry: Entry,
    load: LoadRows | None = None,
    length_of: Callable[[Row], int] | None = None,
) -> tuple[Config, FirstLook]:
    """Return the configuration with the ``seq_length`` that its data need; collective over the
    world.

    Every rank opens its share of the videos, and sends the others its result. Rows that cannot be
    used do not count.

    Args:
        load: reads the rows; by default they are those of files.
        length_of: the tokens of a row; by default those of its prompt and, where it needs room, its
            demonstration.
    """
    length_of = length_of or builder.length
    paths, folder_file = config.data.train_data_path, "train.jsonl"
    if entry == "evaluate":
        paths, folder_file = config.evaluation.data, "heldout.jsonl"
    rank, ranks = groups.gloo_group.rank(), groups.gloo_group.size()
    with raise_on_all_ranks(groups.gloo_group):
        entries = entries_of(config.data, paths, folder_file, entry == "sft", load)
        chosen = _evenly(len(entries), MOST_ROWS)
        mine = [
            found
            for number in chosen[rank::ranks]
            for found in _look_into(length_of, entries, number)
        ]
    everyone = [found for part in gather_objects(groups.gloo_group, mine) for found in part]
    for found in everyone:
        remember(found.probed)
    longest = max((found.length for found in everyone), default=0)
    if entry != "sft" and longest:
        longest += max(config.rollout.max_tokens, config.evaluation.max_tokens or 0)
    if len(chosen) < len(entries):
        longest = math.ceil(longest * MARGIN)
    length = min(math.ceil(longest / MULTIPLE) * MULTIPLE, config.model.max_position_embeddings)
    if longest == 0:  # The run ends with what is wrong with its rows.
        length = config.model.max_position_embeddings
    elif dist.get_rank() == 0:
        logger.info(
            "--seq-length %d, of the longest of %d rows; give another to change it",
            length,
            len(chosen),
        )
    unusable = {found.place: found.problem for found in everyone if found.problem is not None}
    look = FirstLook(tuple(paths), folder_file, entries, unusable)
    return config.replace(seq_length=length), look


def entries_of(
    data: DataSection,
    paths: Sequence[str],
    folder_file: str,
    every_turn: bool,
    load: LoadRows | None = None,
) -> Entries[Row]:
    """The entries of a run's rows.

    Args:
        every_turn: see :func:`~megatron_longrl.data.rows.load_rows`.
        load: reads the rows, all at once; by default they stay in their files.

    Raises:
        DataError: a file is missing, empty or of another format.
    """
    if load is not None:
        return ListedEntries(load(paths, folder_file))
    cells = CellFiles(
        None if data.table_media_dir is None else Path(data.table_media_dir),
        int(data.table_media_gib * 2**30),
    )
    return index_rows(
        paths, folder_file, columns=data.data_columns, every_turn=every_turn, cells=cells
    )


def _evenly(count: int, most: int) -> list[int]:
    step = max(1.0, count / most)
    return [int(number * step) for number in range(min(count, most))]


@dataclass(frozen=True)
class _Found:
    """The result of reading a row."""

    place: tuple[int, int]
    """The number of its entry, and which of the entry's rows it is."""
    length: int
    """Tokens of its prompt and demonstration; 0 where it cannot be used."""
    problem: RowProblem | None
    probed: Probed


def _look_into(
    length_of: Callable[[Row], int], entries: Entries[Row], number: int
) -> Iterator[_Found]:
    """Look into the rows of an entry; one that gives none is told of later."""
    try:
        rows = entries.rows_of(number)
    except RowError:
        return
    for turn, row in enumerate(rows):
        place = (number, turn)
        try:
            length = length_of(row)
            probed = {identity(path): probe(path) for path in row.videos}
        except RowError as error:
            yield _Found(place, 0, error.problem, {})
        except MediaError as error:  # It has gone meanwhile.
            yield _Found(place, 0, RowProblem(row.source, str(error), error.path), {})
        else:
            yield _Found(place, length, None, probed)
