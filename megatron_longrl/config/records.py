"""Fields of the record of rollouts."""

from __future__ import annotations

from megatron_longrl.config.section import PositiveInt, Section

RECORD_FOLDER = "rollouts"
"""In the --save folder."""


class RecordSection(Section):
    """records: rollouts that are kept, and played again (docs/records.md)"""

    record_rollouts: bool = True
    """Write every rollout with its tokens, log-probabilities, rewards and advantage, a file per
    step and model replica."""

    rollout_record_dir: str | None = None
    """Folder of these files; by default rollouts/ in --save, or none without --save."""

    keep_last_rollouts: PositiveInt | None = None
    """Keep the files of only so many of the newest steps; by default all."""

    replay_rollouts: str | None = None
    """Train on the recorded rollouts in this folder; no engine is started, no reward computed."""
