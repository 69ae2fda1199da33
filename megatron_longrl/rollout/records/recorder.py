"""Writes the record of rollouts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.checkpoint.architecture import architecture_of
from megatron_longrl.errors import UserError
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.rollout.records.files import (
    FORMAT,
    Line,
    group_line,
    record_file,
    recorded_files,
    tokenizer_line,
    write_lines,
)

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_longrl.config import Config, ModelConfig
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.experience.rollouts import RewardedGroup, RolloutGroup, RolloutKey
    from megatron_longrl.experience.sampling_settings import SamplingSettings
    from megatron_longrl.parallel.groups import ParallelGroups


_Noted = tuple["SamplingSettings", "RolloutGroup"]


@dataclasses.dataclass(frozen=True)
class StepOutcome:
    """The results of the algorithm for the rollouts of a step."""

    groups: Sequence[RewardedGroup]
    """The groups that may be trained, with their final rewards."""
    trained: Collection[str]
    """The ids of the groups among them that the step trains on."""
    advantages: Mapping[RolloutKey, Tensor]
    """[tokens] of each rollout of these."""


class RolloutRecorder:
    """Keeps the rollouts of a step, all of them, until their advantages are known, and writes them.

    One rank of every model replica writes; construction and :meth:`write` are collective over the
    world.

    Args:
        directory: the folder of the files; files of steps after ``iteration``, which the run does
            again, are removed.
        iteration: steps that are done.
        keep_last: steps whose files stay; None: all.

    Raises:
        UserError: on every rank, when files cannot be written or removed.
    """

    def __init__(
        self,
        directory: str | Path,
        iteration: int,
        config: ModelConfig,
        rl_algorithm: str,
        tokenizer: Tokenizer,
        groups: ParallelGroups,
        keep_last: int | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._gloo_group = groups.gloo_group
        self._keep_last = keep_last
        self._replica, self._replicas = groups.dp.rank(), groups.dp.size()
        self._writes = groups.replica.rank() == 0
        self._noted: list[_Noted] = []
        """Groups as the rewards left them, and how they were drawn."""
        self._run: Line = {
            "model": architecture_of(config),
            "tokenizer": tokenizer_line(tokenizer),
            "seed": config.training.seed,
            "rl_algorithm": rl_algorithm,
        }
        with raise_on_all_ranks(self._gloo_group):
            if self._is_first:
                with _disk(self.directory):
                    self.directory.mkdir(parents=True, exist_ok=True)
                    self._remove(lambda step: step > iteration)

    def note(self, groups: Sequence[RolloutGroup], sampling: SamplingSettings) -> None:
        """Take groups that have just been rewarded, or that continue."""
        self._noted += [(sampling, group) for group in groups]

    def write(self, iteration: int, outcome: StepOutcome, seconds: Mapping[str, float]) -> None:
        """The file of a step, with all that was noted since the last one.

        Args:
            iteration: the number of the step, counted from 0.
            outcome: the groups that the step trains on.
            seconds: the seconds of each phase of the step so far.
        """
        step, noted, self._noted = iteration + 1, self._noted, []
        with raise_on_all_ranks(self._gloo_group):
            if self._writes:
                with _disk(self.directory):
                    lines = [self._head(step, noted, seconds), *_lines(noted, outcome)]
                    write_lines(record_file(self.directory, step, self._replica), lines)
                    if self._is_first and self._keep_last is not None:
                        newest_gone = step - self._keep_last
                        self._remove(lambda old: old <= newest_gone)

    @property
    def _is_first(self) -> bool:
        return self._writes and self._replica == 0

    def _head(self, step: int, noted: Sequence[_Noted], seconds: Mapping[str, float]) -> Line:
        sampling = [dataclasses.asdict(settings) for settings in _settings(noted)]
        return {
            "format": FORMAT,
            "step": step,
            "replica": self._replica,
            "replicas": self._replicas,
            "time": time.time(),
            "seconds": {phase: round(spent, 4) for phase, spent in seconds.items()},
            "sampling": sampling,
            **self._run,
        }

    def _remove(self, goes: Callable[[int], bool]) -> None:
        """The files of all replicas, of this run or of one on another number of ranks."""
        for step, paths in recorded_files(self.directory).items():
            if goes(step):
                for path in paths.values():
                    path.unlink(missing_ok=True)


def build_recorder(
    config: Config, iteration: int, tokenizer: Tokenizer, groups: ParallelGroups
) -> RolloutRecorder | None:
    """The recorder that the configuration asks for; collective over the world."""
    if config.rollout_record is None:
        return None
    keep_last = config.records.keep_last_rollouts
    return RolloutRecorder(
        config.rollout_record,
        iteration,
        config,
        config.algorithm.rl_algorithm,
        tokenizer,
        groups,
        keep_last,
    )


def _settings(noted: Sequence[_Noted]) -> list[SamplingSettings]:
    """Return the distinct sampling settings of the step's rounds."""
    return list(dict.fromkeys(sampling for sampling, _ in noted))


def _lines(noted: Sequence[_Noted], outcome: StepOutcome) -> Iterator[Line]:
    final = {group.group_id: group for group in outcome.groups}
    for sampling, group in noted:
        yield group_line(
            group,
            final.get(group.group_id, group),
            outcome.advantages,
            trained=group.group_id in outcome.trained,
            round=sampling.round,
            greedy=sampling.temperature == 0,
        )


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{directory}: cannot keep the record of rollouts: {error.strerror}; make room, choose "
            "another --rollout-record-dir, or give --no-record-rollouts"
        ) from error
