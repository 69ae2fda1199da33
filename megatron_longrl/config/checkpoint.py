"""Fields of checkpoints."""

from __future__ import annotations

from megatron_longrl.config.section import PositiveInt, Section


class CheckpointSection(Section):
    """checkpoint: what is saved and loaded"""

    save: str | None = None
    """Folder of checkpoints, metrics.jsonl and logs, of this run alone."""

    overwrite: bool = False
    """Remove the run that the --save folder holds, and start anew there."""

    save_interval: PositiveInt | None = None
    """Save every so many steps; by default only at the end."""

    async_save: bool = False
    """Write checkpoints while training goes on. Takes room in host memory for a copy of what a rank
    writes; a save waits for the one before it."""

    keep_last_checkpoints: PositiveInt | None = None
    """Keep only so many of the newest checkpoints; by default all."""

    keep_best_checkpoint_by: str | None = None
    """Keep, beyond these, the one with the largest value of this metric; with a - in front, the
    smallest. Steps are judged where they are saved."""

    load: str | None = None
    """Folder of checkpoints to go on from."""

    pretrained_checkpoint: str | None = None
    """Folder of checkpoints whose weights start the run when --load has none (SFT before RL)."""

    finetune: bool = False
    """Take only the weights of --load; start at step 0 with new optimizer, data and RNG."""

    no_load_optim: bool = False
    """Do not load the optimizer state."""

    no_load_rng: bool = False
    """Do not load the random-number state."""

    exit_on_missing_checkpoint: bool = False
    """End with an error when --load holds no checkpoint, instead of starting anew."""
