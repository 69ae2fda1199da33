"""The length of rows that the data need, where ``--seq-length`` is not given."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from megatron_longrl.config import Config, Entry
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import LoadRows, Row, RowError, RowProblem, load_rows
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
    """Rows that were read to find the length, so that they are not read again."""

    paths: tuple[str, ...]
    folder_file: str
    rows: list[Row]
    problems: list[RowProblem]
    """Problems of rows that could not be read."""
    unusable: dict[int, RowProblem]
    """Problems of the rows that were read, by their index in ``rows``."""

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

    Every rank opens its share of the videos, and tells the others what it has found. Rows that
    cannot be used do not count.

    Args:
        load: reads the rows; by default as JSON lines.
        length_of: the tokens of a row; by default those of its prompt and, where it needs room, its
            demonstration.
    """
    length_of = length_of or builder.length
    paths, folder_file = config.data.train_data_path, "train.jsonl"
    if entry == "evaluate":
        paths, folder_file = config.evaluation.data, "heldout.jsonl"
    rank, ranks = groups.gloo_group.rank(), groups.gloo_group.size()
    problems: list[RowProblem] = []
    with raise_on_all_ranks(groups.gloo_group):
        read = load or partial(
            load_rows, columns=config.data.data_columns, every_turn=entry == "sft"
        )
        rows = read(paths, folder_file, problems=None if config.data.strict_data else problems)
        chosen = _evenly(len(rows), MOST_ROWS)
        mine = [_look_into(length_of, rows, index) for index in chosen[rank::ranks]]
    everyone = [found for part in gather_objects(groups.gloo_group, mine) for found in part]
    for found in everyone:
        remember(found.probed)
    longest = max((found.length for found in everyone), default=0)
    if entry != "sft" and longest:
        longest += max(config.rollout.max_tokens, config.evaluation.max_tokens or 0)
    if len(chosen) < len(rows):
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
    unusable = {found.index: found.problem for found in everyone if found.problem is not None}
    look = FirstLook(tuple(paths), folder_file, rows, problems, unusable)
    return config.replace(seq_length=length), look


def _evenly(count: int, most: int) -> list[int]:
    step = max(1.0, count / most)
    return [int(number * step) for number in range(min(count, most))]


@dataclass(frozen=True)
class _Found:
    """The result of reading a row."""

    index: int
    length: int
    """Tokens of its prompt and demonstration; 0 where it cannot be used."""
    problem: RowProblem | None
    probed: Probed


def _look_into(length_of: Callable[[Row], int], rows: Sequence[Row], index: int) -> _Found:
    row = rows[index]
    try:
        length = length_of(row)
        probed = {identity(path): probe(path) for path in row.videos}
    except RowError as error:
        return _Found(index, 0, error.problem, {})
    except MediaError as error:  # It has gone meanwhile.
        return _Found(index, 0, RowProblem(row.source, str(error), error.path), {})
    return _Found(index, length, None, probed)
