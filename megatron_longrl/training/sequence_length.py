"""The length of rows that the data need, where ``--seq-length`` is not given."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch.distributed as dist

from megatron_longrl.config import Config, Entry
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import Row, RowError, load_rows
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

MOST_ROWS = 512
"""Rows that are looked into; of more, so many at equal distances."""

MARGIN = 1.25
"""By which rows that were not looked into may be longer."""

MULTIPLE = 64


def with_sequence_length(
    config: Config, builder: PromptBuilder, groups: ParallelGroups, entry: Entry
) -> Config:
    """The configuration with the ``seq_length`` that its data need; collective over the world.

    Every rank opens its share of the videos. Rows that cannot be used do not count.
    """
    paths, folder_file = config.train_data_path, "train.jsonl"
    if entry == "evaluate":
        paths, folder_file = config.data, "heldout.jsonl"
    rank, ranks = groups.control.rank(), groups.control.size()
    with together(groups.control):
        rows = load_rows(paths, folder_file, problems=None if config.strict_data else [])
        chosen = _evenly(rows, MOST_ROWS)
        mine = max((_length(builder, row, entry) for row in chosen[rank::ranks]), default=0)
    longest = max(gather_objects(groups.control, mine))
    if entry != "sft":
        longest += max(config.rollout_max_tokens, config.eval_max_tokens or 0)
    if len(chosen) < len(rows):
        longest = math.ceil(longest * MARGIN)
    length = min(math.ceil(longest / MULTIPLE) * MULTIPLE, config.max_position_embeddings)
    if dist.get_rank() == 0:
        logger.info(
            "--seq-length %d, of the longest of %d rows; give another to change it",
            length,
            len(chosen),
        )
    return config.replace(seq_length=length)


def _evenly(rows: Sequence[Row], most: int) -> list[Row]:
    step = max(1.0, len(rows) / most)
    return [rows[int(number * step)] for number in range(min(len(rows), most))]


def _length(builder: PromptBuilder, row: Row, entry: Entry) -> int:
    """Tokens of a row's prompt and demonstration; 0 where it cannot be used."""
    try:
        prompt = len(builder.build(row).token_ids)
        return prompt + (len(builder.response_ids(row)) if entry == "sft" else 0)
    except RowError:
        return 0
