"""Recorded rollouts in place of an engine and of rewards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from megatron_longrl.checkpoint.architecture import differing_architecture
from megatron_longrl.config.records import RECORD_FOLDER
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import (
    EngineStats,
    OnRollout,
    RewardedGroup,
    Rollout,
    RolloutGroup,
    RolloutRequest,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.records.files import (
    Line,
    prompt_hash,
    read_group,
    read_lines,
    recorded_files,
    tokenizer_line,
)

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.parallel.groups import ParallelGroups

_Place = tuple[int, bool, str]
"""Round, greedy, uid."""


class ReplayedRollouts(RolloutEngine, Rewards):
    """An engine and rewards that return the recorded rollouts and rewards, and nothing else.

    A step's prompts are looked up, so the order of the data must be that of the recorded run; the
    number of replicas may be another one. Construction is collective over the world.

    Args:
        directory: the record, or the --save folder that holds it.
        steps: the steps that will be asked for, counted from 1.

    Raises:
        UserError: on every rank, when a step is missing, or was recorded with another model or
            tokenizer.
    """

    def __init__(
        self,
        directory: str | Path,
        steps: range,
        config: ModelConfig,
        tokenizer: Tokenizer,
        groups: ParallelGroups,
    ) -> None:
        self.weight_version = -1
        self.stats = EngineStats()
        self.directory = Path(directory)
        self._config = config
        self._gloo_group = groups.replica_gloo_group
        self._replica, self._replicas = groups.dp.rank(), groups.dp.size()
        self._step = 0
        self._waiting: dict[_Place, list[Line]] = {}
        with raise_on_all_ranks(groups.gloo_group):
            if not recorded_files(self.directory) and (self.directory / RECORD_FOLDER).is_dir():
                self.directory /= RECORD_FOLDER
            self._files = recorded_files(self.directory)
            self._check(steps, tokenizer)

    # ---- An engine ----

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> list[RolloutGroup]:
        """The recorded responses to these prompts, with their rewards; what went on in a later step
        is partial."""
        with raise_on_all_ranks(self._gloo_group):
            if sampling.step + 1 != self._step:
                self._open(sampling.step + 1)
            return [self._group(request, sampling) for request in requests]

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Ignore weights, because a replay samples nothing."""
        self.weight_version = version

    def reset_prefix_cache(self) -> None:
        """Do nothing, because a replay has no cache."""

    # ---- Rewards ----

    def submit(self, prompt: Prompt, rollout: Rollout, group_size: int) -> None:
        """Do nothing, because a replay computes no rewards."""

    def collect(self, groups: Sequence[RolloutGroup]) -> list[RewardedGroup]:
        """The groups as they are: they have the rewards that were recorded."""
        rewarded = []
        for group in groups:
            if not isinstance(group, RewardedGroup):
                raise RuntimeError(f"the record has no rewards of prompt {group.prompt.uid}")
            rewarded.append(group)
        return rewarded

    def pop_counters(self) -> dict[str, float]:
        """Return no counts: failures are those of the recorded run."""
        return {}

    def close(self) -> None:
        """Do nothing, because a replay holds no resources."""

    # ---- The record ----

    def _check(self, steps: range, tokenizer: Tokenizer) -> None:
        there = f"{self.directory} has steps {_spans(self._files)}"
        if not self._files:
            there = f"{self.directory} has no files step_*-replica_*.jsonl"
        for step in steps:
            if step not in self._files:
                raise UserError(
                    f"no rollouts of step {step} to replay: {there}; begin at a checkpoint before "
                    "one of them with --load, or lower --train-iters"
                )
        for step in steps[:1]:
            head, _ = read_lines(next(iter(self._files[step].values())))
            differing = differing_architecture(head["model"], self._config)
            if differing:
                raise UserError(
                    f"{self.directory} records rollouts of another model: {differing}; replay them "
                    "with the model that they were recorded with"
                )
            if head["tokenizer"] != tokenizer_line(tokenizer):
                raise UserError(
                    f"{self.directory} records rollouts of another tokenizer (of "
                    f"{head['tokenizer']['vocab_size']} tokens, this one has "
                    f"{tokenizer.vocab_size}): replay them with the --tokenizer-model that they "
                    "were recorded with"
                )

    def _open(self, step: int) -> None:
        """Read what this replica may be asked for."""
        paths = self._files[step]
        replicas = read_lines(next(iter(paths.values())))[0]["replicas"]
        missing = sorted(set(range(replicas)) - set(paths))
        if missing:
            raise UserError(
                f"{self.directory}: step {step} has no file of replica {missing[0]}, of {replicas}:"
                " the recorded run ended there; lower --train-iters"
            )
        alike = replicas == self._replicas
        self._step, self._waiting = step, {}
        for replica, path in paths.items():
            if replica < replicas and (not alike or replica == self._replica):
                for line in read_lines(path)[1]:
                    place = (line["round"], line["greedy"], line["uid"])
                    self._waiting.setdefault(place, []).append(line)
        twice = next((place for place, lines in self._waiting.items() if len(lines) > 1), None)
        if twice is not None and not alike:
            raise UserError(
                f"{self.directory}: step {step} has prompt {twice[2]} more than once, on {replicas}"
                f" model replicas; replay it on as many, not on {self._replicas}"
            )

    def _group(self, request: RolloutRequest, sampling: SamplingSettings) -> RolloutGroup:
        prompt = request.prompt
        place = (sampling.round, sampling.temperature == 0, prompt.uid)
        lines = self._waiting.get(place)
        where = f"{self.directory}, step {self._step}"
        if not lines:
            raise UserError(
                f"{where}: no rollouts of row {prompt.row.source} ({prompt.uid}), which this run "
                "asks for: its data or their order (--train-data-path, --seed, "
                "--grpo-prompts-per-step, the step of --load) are not those of the recorded run"
            )
        line = lines.pop(0)
        if line["prompt_hash"] != prompt_hash(prompt):
            raise UserError(
                f"{where}: the prompt of row {prompt.row.source} ({prompt.uid}) was another one "
                f"({line['prompt_tokens']} tokens there, {len(prompt.token_ids)} here): its data, "
                "media, --chat-template or --video-frames are not those of the recorded run"
            )
        if len(line["responses"]) != sampling.n:
            raise UserError(
                f"{where}: {len(line['responses'])} responses to a prompt, where this run asks for "
                f"{sampling.n}: give --grpo-group-size {len(line['responses'])}"
            )
        return read_group(line, prompt, request.group_id)


def _spans(steps: Iterable[int]) -> str:
    """``1-4, 7``."""

    def spans() -> Iterator[str]:
        first = last = None
        for step in sorted(steps):
            if last is not None and step == last + 1:
                last = step
                continue
            if first is not None:
                yield str(first) if first == last else f"{first}-{last}"
            first = last = step
        if first is not None:
            yield str(first) if first == last else f"{first}-{last}"

    return ", ".join(spans())
