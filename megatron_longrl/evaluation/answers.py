"""Answers to rows, asked in one way or in several: validation within training, and the evaluate
entry point. Media are decoded and encoded once, whatever the number of ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.config.rollout import RolloutSection
from megatron_longrl.config.training import TrainingSection
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row, RowProblem
from megatron_longrl.evaluation.asking import Asking
from megatron_longrl.evaluation.progress import AnswerProgress
from megatron_longrl.experience.rollouts import RewardedGroup, rollout_requests
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.media.joined import JoinedMedia, join_media
from megatron_longrl.media.provider import Media
from megatron_longrl.rewards.protocol import Rewards
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.training.runtime import Runtime, problem_of


@dataclass
class Answers:
    """The answers to some rows under one way of asking."""

    groups: list[RewardedGroup] = field(default_factory=list)
    unanswered: list[tuple[Row, str]] = field(default_factory=list)
    """Rows that could not be asked, and why."""


@dataclass
class EncodingCounts:
    """Counts of what was encoded on this rank, and of what was asked."""

    loaded: Counter[str] = field(default_factory=Counter)
    """Items that were loaded and encoded, by kind."""
    media: int = 0
    """Media that were encoded, or taken from where embeddings are kept; on the replica."""
    asked: Counter[str] = field(default_factory=Counter)
    """Items that the prompts hold, by kind; on the replica."""


def answer(
    runtime: Runtime,
    engine: RolloutEngine,
    rewards: Rewards,
    rows: Sequence[Row],
    ways: Sequence[Asking],
    name: str,
    progress: AnswerProgress | None = None,
    counts: EncodingCounts | None = None,
) -> list[Answers]:
    """Generate and score responses to each row in each way, with the settings of evaluation.

    Args:
        name: the name of the answers among the run's generations, which no other one has.
        progress: is told how far it has come.
        counts: gets what was encoded.

    Returns:
        The answers of each way.
    """
    config = runtime.config
    sampling = evaluation_settings(config.evaluation, config.training, config.rollout)
    found = [Answers() for _ in ways]
    counts = counts if counts is not None else EncodingCounts()
    told: set[tuple[str, str]] = set()
    for number, batch in enumerate(in_batches(rows, max(config.evaluation.batch_size, 1))):
        asked = [
            _expand(runtime, way, batch, into, told) for way, into in zip(ways, found, strict=True)
        ]
        shared = _encode(runtime, asked, counts)
        for place, (way, into) in enumerate(zip(ways, found, strict=True)):
            prompts, embeddings = shared.of(runtime, asked[place], into, told)
            title = f"{name}.{number}" if len(ways) == 1 else f"{name}, {way.name}.{number}"
            requests = rollout_requests(prompts, title)
            answered = engine.generate(requests, embeddings, sampling, rewards.submit)
            into.groups += rewards.collect(answered)
            if progress is not None:
                progress.answered(sum(len(a.groups) + len(a.unanswered) for a in found))
    return found


def by_video(rows: Sequence[Row], replica: int, replicas: int) -> list[Row]:
    """A replica's share of rows, those of a video behind each other: no two replicas have rows of
    the same video, so that each is decoded and encoded once."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_media_of(row) or (row.uid,), []).append(row)
    mine: list[Row] = []
    before = 0
    for group in groups.values():
        if before * replicas // max(len(rows), 1) == replica:
            mine += group
        before += len(group)
    return mine


def evaluation_settings(
    evaluation: EvaluationSection, training: TrainingSection, rollout: RolloutSection
) -> SamplingSettings:
    """Return the sampling settings of evaluation. Every validation of a run uses the same random
    numbers, which no training step uses."""
    return SamplingSettings(
        n=evaluation.group_size,
        max_tokens=evaluation.max_tokens or rollout.max_tokens,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        top_k=evaluation.top_k,
        min_p=evaluation.min_p,
        stop_strings=tuple(rollout.stop),
        seed=training.seed,
        step=-1,
    )


def _media_of(row: Row) -> tuple[str, ...]:
    return tuple(str(medium.path) for medium in row.media)


def in_batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Batches of about ``size`` rows that do not part neighbours with the same media, as far as
    these fit into twice as many."""
    start = 0
    while start < len(rows):
        end = min(start + size, len(rows))
        while (
            end < len(rows)
            and end - start < 2 * size
            and _media_of(rows[end])
            and _media_of(rows[end]) == _media_of(rows[end - 1])
        ):
            end += 1
        yield rows[start:end]
        start = end


def _expand(
    runtime: Runtime, way: Asking, rows: Sequence[Row], into: Answers, told: set[tuple[str, str]]
) -> list[Prompt]:
    """The prompts of rows; what cannot be asked goes to ``into``."""
    prompts = []
    for row, built in zip(rows, runtime.expand(rows, way.builder, way.prepare), strict=True):
        if isinstance(built, RowProblem):
            _leave_out(runtime, row, built, into, told)
        else:
            prompts.append(built)
    runtime.show_first(way.builder, prompts)
    return prompts


def _leave_out(
    runtime: Runtime, row: Row, problem: RowProblem, into: Answers, told: set[tuple[str, str]]
) -> None:
    """Note a row that cannot be asked; the run is told once, in however many ways it is asked."""
    runtime.isolate(row, problem)
    into.unanswered.append((row, problem.reason))
    if (row.uid, problem.reason) not in told:
        told.add((row.uid, problem.reason))
        runtime.skip(problem)


@dataclass(frozen=True)
class _Shared:
    """Embeddings that several ways share."""

    media: Media
    joined: Mapping[str, tuple[JoinedMedia, Sequence[int]]]
    """Key of a medium -> the joined one that holds its units, and which of them they are."""

    def of(
        self,
        runtime: Runtime,
        prompts: Sequence[Prompt],
        into: Answers,
        told: set[tuple[str, str]],
    ) -> tuple[list[Prompt], dict[str, Tensor]]:
        """The prompts whose media could be read, and their embeddings by key."""
        kept, embeddings = [], {}
        for prompt in prompts:
            keys = [spec.key() for spec in prompt.media]
            whole = [self.joined[key][0].spec.key() for key in keys]
            reasons = [self.media.failed[key] for key in whole if key in self.media.failed]
            if reasons:
                problem = problem_of(prompt.row, reasons[0])
                _leave_out(runtime, prompt.row, problem, into, told)
                continue
            kept.append(prompt)
            for key, of in zip(keys, whole, strict=True):
                if key not in embeddings:
                    joined, units = self.joined[key]
                    embeddings[key] = joined.take(self.media.embeddings[of], units)
        return kept, embeddings


def _encode(runtime: Runtime, asked: Sequence[Sequence[Prompt]], counts: EncodingCounts) -> _Shared:
    """Encode the units that the prompts of all ways need, each once; collective over the
    replica."""
    specs = {spec.key(): spec for prompts in asked for p in prompts for spec in p.media}
    joined = join_media(list(specs.values()))
    media = runtime.media.provide([one.spec for one in joined], for_training=False)
    counts.loaded += media.counts
    counts.media += len(joined)
    for prompts in asked:
        for prompt in prompts:
            for spec in prompt.media:
                counts.asked[spec.counted_as] += spec.num_units * spec.count_per_unit
    return _Shared(media, {key: (one, units) for one in joined for key, units in one.parts.items()})
