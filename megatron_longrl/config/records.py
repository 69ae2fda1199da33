"""Fields of the record of rollouts."""

from __future__ import annotations

from typing import Annotated, ClassVar

from megatron_longrl.config.section import Metavar, PositiveInt, Programs, Section, Unit

RECORD_FOLDER = "rollouts"
"""Folder of the records in the --save folder."""


class RecordSection(Section):
    """records: rollouts that are kept, and played again

    docs/records.md describes them.
    """

    programs: ClassVar[Programs] = ("rl",)

    record_rollouts: bool = True
    """Write every rollout with its tokens, log-probabilities, rewards and advantages, a file for
    each step and model replica."""

    rollout_record_dir: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of these files; by default rollouts/ in the --save folder, and nothing is recorded
    without --save."""

    keep_last_rollouts: Annotated[PositiveInt | None, Unit("steps")] = None
    """Steps, the newest ones, whose files are kept; by default all."""

    replay_rollouts: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of recorded rollouts to train on; no engine is started, no reward computed. By default
    responses are generated."""
