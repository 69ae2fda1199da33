"""Fields of checkpoints."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from megatron_longrl.config.renamed import NEW_VALUES
from megatron_longrl.config.section import KnownTo, Metavar, PositiveInt, Programs, Section, Unit


def _present_metric(metric: str) -> str:
    if metric in NEW_VALUES["keep_best_checkpoint_by"]:
        raise ValueError("this metric has another name now")
    return metric


class CheckpointSection(Section):
    """checkpoint: what is saved and loaded

    --load alone resumes a run: its recipe is read from the checkpoint.
    """

    programs: ClassVar[Programs] = ("sft", "rl")

    save: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of this run alone: checkpoints, metrics.jsonl, log.txt, config.yaml and rollouts; by
    default nothing is written."""

    overwrite: bool = False
    """Remove the run in the --save folder and start a new one there."""

    save_interval: Annotated[PositiveInt | None, Unit("steps")] = None
    """Steps from one checkpoint to the next; by default only the last step leaves one."""

    async_save: bool = False
    """Write checkpoints while training continues. This takes host memory for a copy of what a rank
    writes; a save waits for the previous one."""

    keep_last_checkpoints: Annotated[PositiveInt | None, Unit("checkpoints")] = None
    """Newest checkpoints that are kept; by default all."""

    keep_best_checkpoint_by: Annotated[
        Annotated[str, AfterValidator(_present_metric)] | None, Metavar("[-]METRIC")
    ] = None
    """Keep, beyond the newest, the checkpoint with the largest value of this metric
    (docs/metrics.md), or with a - in front the smallest, in the step that it was saved after; by
    default the newest only. Without --keep-last-checkpoints all are kept anyway."""

    load: Annotated[str | None, Metavar("FOLDER"), KnownTo("sft", "rl", "evaluate", "generate")] = (
        None
    )
    """Folder of the run, or of one of its checkpoints, to resume; by default a new run starts. For
    evaluate and generate, the folder with the weights, which may also be a Hugging Face model."""

    pretrained_checkpoint: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder whose weights start the run where --load has none: a Hugging Face model, or a run (SFT
    before RL). By default weights are drawn at random."""

    finetune: bool = False
    """Take only the weights of --load; start at step 0 with a new optimizer, order of data and
    random numbers."""

    no_load_optim: bool = False
    """Do not load the state of the optimizer."""

    no_load_rng: bool = False
    """Do not load the state of the random numbers."""

    exit_on_missing_checkpoint: bool = False
    """End with an error when --load holds no checkpoint, instead of starting a new run."""

    @property
    def starts_from(self) -> str | None:
        """The run or folder that has the weights of a program that trains none; None where they are
        random."""
        return self.load or self.pretrained_checkpoint
