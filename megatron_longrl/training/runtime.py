"""The parts that both training loops of a language model and its evaluation share: those of every
run, tokenizer, prompts, and stage 1."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from megatron_longrl.data.prompts import Prompt, PromptBuilder
from megatron_longrl.data.rows import LoadRows, Row, RowError, RowProblem
from megatron_longrl.data.tokenizer import Tokenizer, build_tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.media.deadline import NO_ANSWER
from megatron_longrl.media.embedding_store import EmbeddingStore, open_store
from megatron_longrl.media.encoder import MediaEncoder, UnitEncoder
from megatron_longrl.media.loader import MediaLoader
from megatron_longrl.media.modality import MODALITIES
from megatron_longrl.media.partition import Cut
from megatron_longrl.media.provider import Media, MediaProvider
from megatron_longrl.media.read_policy import ReadPolicy
from megatron_longrl.media.spec import MediaSpec
from megatron_longrl.models.build import encoder_groups
from megatron_longrl.models.family import find_family
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.models.transformer_engine import check_installed
from megatron_longrl.observability.timing import PhaseTimer
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.planner.cost import HardwareProfile
from megatron_longrl.planner.packing import even_part
from megatron_longrl.platforms import platform
from megatron_longrl.training.encoder_version import EncoderVersion
from megatron_longrl.training.hardware import measure_hardware
from megatron_longrl.training.language_step import LanguageTrainStep
from megatron_longrl.training.model import TrainedModel, build_model
from megatron_longrl.training.output_heads import LogprobHead
from megatron_longrl.training.run import Run
from megatron_longrl.training.sequence_length import FirstLook, with_sequence_length

if TYPE_CHECKING:
    from megatron_longrl.config import Config, Entry, ModelConfig
    from megatron_longrl.config.data import DataSection

logger = logging.getLogger(__name__)

CUTS: dict[str, Cut] = {"auto": "auto", "none": "never", "encode": "always", "full": "always"}
"""Division of media for each value of --mrsp-mode."""

_DONE = ("decoded", "encoded")
"""Operations on units that the metrics count."""


@dataclass(frozen=True)
class Expansion:
    """The rows and settings of which prompts were built; the same on every rank of a replica."""

    uids: tuple[str, ...]
    """The rows'."""
    max_frames: int | None

    @classmethod
    def of(cls, rows: Sequence[Row], builder: PromptBuilder) -> Expansion:
        """The expansion of rows by a builder, as it is now."""
        return cls(tuple(row.uid for row in rows), builder.max_frames)


@dataclass
class Runtime(Run):
    """One rank's view of a run of a language model."""

    tokenizer: Tokenizer
    builder: PromptBuilder
    model: TrainedModel
    train_step: LanguageTrainStep
    store: EmbeddingStore
    media: MediaProvider
    hardware: HardwareProfile
    """The hardware profile of the cost model."""
    first_look: FirstLook | None = None
    """The rows that were read to find ``seq_length``, where it was not given."""
    samples_skipped: int = 0
    """Samples of this replica that were dropped since the last report."""
    last_skip: str | None = None
    """Reason for which the newest of them was skipped."""
    expanded: tuple[Expansion, list[Prompt | RowProblem]] | None = None
    """Prompts that were built ahead, and what they were built of."""
    shows_prompts: bool = True
    """Whether the next prompt that is built is the first one, which is shown."""

    @property
    def replica_rank(self) -> int:
        """Position of this rank in its replica."""
        return self.groups.replica.rank()

    def rows_of_replica(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of this replica among those of a whole step."""
        return even_part(rows, self.groups.dp.rank(), self.groups.dp.size())

    def most_rows(self, rows: Sequence[Row]) -> int:
        """Rows of the replica that has most of them."""
        return max(gather_objects(self.groups.gloo_group, len(rows)))

    def build_prompts(self, rows: Sequence[Row]) -> list[Prompt]:
        """Expand rows; each rank of the replica looks into its own share of the videos.

        A row that cannot be used, because of its video or anything else, is dropped, counted and
        logged; with --strict-data it ends the run.
        """
        prompts = []
        for row, built in zip(rows, self._built(rows), strict=True):
            if isinstance(built, RowProblem):
                self.isolate(row, built)
                self.skip(built)
            else:
                prompts.append(built)
        self.show_first(self.builder, prompts)
        return prompts

    def show_first(self, builder: PromptBuilder, prompts: Sequence[Prompt]) -> None:
        """Log the first prompt of the run."""
        if prompts and self.shows_prompts:
            self.shows_prompts = False
            if dist.get_rank() == 0:
                show_prompt(builder, prompts[0], self.entry)

    def encode_ahead(self, rows: Sequence[Row]) -> Media:
        """Bring the embeddings of a later step's rows into the store, as far as they fit. Media
        that cannot be read are left to that step. It is collective over the replica."""
        return self.media.prefetch(self._specs_ahead(rows))

    def load_ahead(
        self, rows: Sequence[Row], further: Sequence[Row], *, for_training: bool
    ) -> None:
        """Begin to load what :meth:`encode` will encode for a later step's rows, within
        --media-prefetch-gib, and to look into the files of the rows behind them; both beside this
        thread. Media that cannot be read are left to their step. It is collective over the
        replica."""
        loader = self.media.encoder.loader
        if not loader.works_ahead or self.builder.reads_text_only:
            return
        self.media.load_ahead(self._specs_ahead(rows), for_training=for_training)
        mine = further[self.replica_rank :: self.groups.replica.size()]

        def look() -> None:
            for row in mine:
                self.builder.look_into(row)

        loader.look_ahead(look)

    def close(self) -> None:
        """End the threads that load media."""
        self.media.encoder.loader.close()

    def _specs_ahead(self, rows: Sequence[Row]) -> list[MediaSpec]:
        """The media of rows whose prompts are kept for :meth:`build_prompts`; collective over the
        replica."""
        built = self._built(rows)
        self.expanded = Expansion.of(rows, self.builder), built
        prompts = [prompt for prompt in built if not isinstance(prompt, RowProblem)]
        return [spec for prompt in prompts for spec in prompt.media]

    def _built(self, rows: Sequence[Row]) -> list[Prompt | RowProblem]:
        """The prompts of rows by the run's builder, which may have been built ahead; collective
        over the replica."""
        kept, self.expanded = self.expanded, None
        if kept is not None and kept[0] == Expansion.of(rows, self.builder):
            return kept[1]
        return self.expand(rows, self.builder)

    def expand(
        self,
        rows: Sequence[Row],
        builder: PromptBuilder,
        prepare: Callable[[Row], Row] = lambda row: row,
    ) -> list[Prompt | RowProblem]:
        """The prompt of every row, or why it has none; collective over the replica.

        Args:
            prepare: changes a row before it is expanded; may raise RowError.
        """
        mine: dict[int, Prompt | RowProblem] = {}
        with raise_on_all_ranks(self.groups.replica_gloo_group):
            for index in range(self.replica_rank, len(rows), self.groups.replica.size()):
                try:
                    mine[index] = builder.build(prepare(rows[index]))
                except RowError as error:
                    mine[index] = error.problem
        parts = gather_objects(self.groups.replica_gloo_group, mine)
        built = {index: value for part in parts for index, value in part.items()}
        return [built[index] for index in range(len(rows))]

    def encode(
        self, prompts: Sequence[Prompt], *, for_training: bool
    ) -> tuple[list[Prompt], Media]:
        """The prompts whose media could be read, and the embeddings of these."""
        specs = [spec for prompt in prompts for spec in prompt.media]
        media = self.media.provide(specs, for_training=for_training)
        kept = []
        for prompt in prompts:
            reasons = [media.failed[s.key()] for s in prompt.media if s.key() in media.failed]
            if reasons:
                problem = problem_of(prompt.row, reasons[0])
                self.isolate(prompt.row, problem, is_broken=True)
                self.skip(problem)
            else:
                kept.append(prompt)
        return kept, media

    def media_metrics(self, media: Media | None) -> dict[str, float]:
        """Return counts of decoded and encoded units, of the sources of embeddings, and of skipped
        samples, over all ranks. The count of skipped samples starts again from 0.

        ``mem-embeddings-bytes`` are those in memory, once for each replica. All ranks also learn of
        the files that were put into quarantine.
        """
        self.share_quarantine()
        media = media or Media()
        counted = {"frames": 0, **dict.fromkeys(self._counted(), 0), **media.counts}
        counts = {
            **{_metric(name, done): n for name, n in counted.items() for done in _DONE},
            "samples_skipped": 0,
            "embeddings_from_memory": 0,
            "embeddings_from_disk": 0,
            "mem-embeddings-bytes": 0,
        }
        if self.replica_rank == 0:  # The ranks of a replica know the same.
            counts["samples_skipped"] = self.samples_skipped
            counts["embeddings_from_memory"] = media.from_memory
            counts["embeddings_from_disk"] = media.from_disk
            counts["mem-embeddings-bytes"] = self.store.bytes
        self.samples_skipped = 0
        everyone = gather_objects(self.groups.gloo_group, counts)
        names = dict.fromkeys(name for part in everyone for name in part)
        totals: dict[str, float] = {n: sum(part.get(n, 0) for part in everyone) for n in names}
        totals["mem-embeddings-bytes"] = float(totals["mem-embeddings-bytes"])  # no count to add up
        return totals

    def _counted(self) -> list[str]:
        """Return the units of each modality that the metrics count."""
        encoders = self.media.encoder.encoders.values()
        return [MODALITIES.find(name).counted_as for e in encoders for name in e.modalities]

    def isolate(self, row: Row, problem: RowProblem, *, is_broken: bool = False) -> None:
        """Put the file that is to blame for a row's problem into quarantine, where it cannot be
        read at all, and not only by this model or under these flags.

        Args:
            is_broken: the file is known to be so; otherwise the file is looked into, unless it did
            not
                answer: to look again would wait again.
        """
        medium = next((m for m in row.media if str(m.path) == problem.media), None)
        if medium is None:
            return
        if is_broken or NO_ANSWER in problem.reason or self.builder.is_unreadable(medium):
            self.builder.quarantine.add(str(medium.path), problem.reason)

    def share_quarantine(self) -> None:
        """Tell all ranks which files were put into quarantine; collective over the world."""
        quarantine = self.builder.quarantine
        for entries in gather_objects(self.groups.gloo_group, quarantine.take_new()):
            quarantine.learn(entries)

    def skip(self, problem: RowProblem) -> None:
        """Count and log a sample that cannot be used; with --strict-data it ends the run."""
        if self.config.data.strict_data:
            raise UserError(f"{problem}; without --strict-data it is skipped")
        self.samples_skipped += 1
        self.last_skip = str(problem)
        if self.replica_rank == 0:
            logger.warning("sample skipped: %s", problem)


def problem_of(row: Row, reason: str) -> RowProblem:
    """The problem of a row of which a file cannot be decoded, as the reason says that begins with
    its path."""
    path = next((str(m.path) for m in row.media if reason.startswith(f"{m.path}: ")), None)
    return RowProblem(row.source, reason, path)


def _metric(counted_as: str, done: str) -> str:
    """``frames_decoded``, or ``units_decoded/NAME``."""
    what, slash, modality = counted_as.partition("/")
    return f"{what}_{done}{slash}{modality}"


def show_prompt(builder: PromptBuilder, prompt: Prompt, entry: Entry) -> None:
    """Log the text of the first row that the model reads, and the text that it has to write."""
    row = prompt.row
    text = builder.shown(prompt)
    logger.info("first prompt, %d tokens (%s):\n%s", len(prompt.token_ids), row.source, text)
    if entry == "sft":
        target, count = builder.shown_target(row)
        logger.info("first target, %d tokens:\n%s", count, target)
    else:
        logger.info("its reference answer: %s", row.answer)


Look = Callable[[Tokenizer], tuple[LoadRows | None, Callable[[Row], int]]]
"""Gives the function that reads the rows at which a first look is taken, None for that of JSON
lines, and the function that gives the tokens of one."""


def build_runtime(config: Config, entry: Entry, look: Look | None = None) -> Runtime:
    """Start the process groups and build everything that a run needs; collective over the world.

    Args:
        look: how --seq-length is found where it is not given; by default from the rows of --data or
            --train-data-path and the run's own prompts.
    """
    platform.prepare()
    check_installed(config.model)
    groups = init_parallel(config.parallel, config.model)
    if config.training.bf16 and not platform.multiplies_bf16 and dist.get_rank() == 0:
        logger.warning(
            "this %s has no fast bf16: matrix products take up to a hundred times longer than in "
            "fp32; leave out --bf16",
            platform.name.upper(),
        )
    with raise_on_all_ranks(groups.gloo_group):
        tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.tokenizer_model)
        if config.model.vocab_size is None:
            config = config.replace(vocab_size=tokenizer.vocab_size)
        elif config.model.vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"--vocab-size {config.model.vocab_size} is smaller than the tokenizer's "
                f"{tokenizer.vocab_size} tokens: leave it out, or use the model's own tokenizer"
            )
        builder = prompt_builder(config, tokenizer, entry)
    first_look = None
    if config.training.seq_length_from_data:
        load, length_of = look(tokenizer) if look else (None, None)
        config, first_look = with_sequence_length(config, builder, groups, entry, load, length_of)
        builder = prompt_builder(config, tokenizer, entry)
    model = build_model(config, groups, train=entry != "evaluate")
    timer = PhaseTimer()
    media_encoder = _media_encoder(config, config.data, model, groups, timer)
    # What a trained encoder makes is stale after the next update, and of no use to another run.
    frozen = [name for name in model.encoders if name not in model.trained_encoders]
    outlives_run = frozen if config.data.embedding_cache_dir is not None else []
    store = open_store(
        int(config.data.embedding_store_gib * 2**30),
        config.training.params_dtype,
        groups.replica_gloo_group,
        disk_folder=Path(config.data.embedding_cache_dir or "") if outlives_run else None,
        disk_bytes=int(config.data.embedding_cache_gib * 2**30),
    )
    version = EncoderVersion(model, config, groups, outlives_run=outlives_run)
    # Greedy rollouts (temperature 0) are trained as the distribution that they are the mode of.
    temperature = (config.rollout.temperature or 1.0) if entry == "rl" else 1.0
    assert config.model.vocab_size is not None
    head = LogprobHead(groups.tp, config.model.vocab_size, temperature)
    return Runtime(
        config=config,
        groups=groups,
        entry=entry,
        tokenizer=tokenizer,
        builder=builder,
        model=model,
        train_step=LanguageTrainStep(model, media_encoder, groups, head),
        store=store,
        media=MediaProvider(
            media_encoder,
            store,
            version,
            trained=model.trained_encoders,
            outlives_run=outlives_run,
        ),
        timer=timer,
        hardware=measure_hardware(config.training, config.model, config.parallel, groups)
        if entry != "evaluate"
        else HardwareProfile(),
        first_look=first_look,
    )


def _media_encoder(
    config: ModelConfig,
    data: DataSection,
    model: TrainedModel,
    groups: ParallelGroups,
    timer: PhaseTimer,
) -> MediaEncoder:
    """Stage 1 of MR-SP with the model's encoders."""
    encoders = {}
    for name, encoder in find_family(config.model.family).encoders.items():
        module = model.encoders[name]
        ranks = encoder_groups(encoder, config.parallel, groups)
        encoders[name] = UnitEncoder(
            module=module if name in model.trained_encoders else module.module,
            modalities=encoder.modalities,
            width=encoder.width(config),
            chunk_units=partial(encoder.chunk_units, data),
            group=ranks.units,
            tensor_parallel=ranks.tensor_parallel,
        )
    return MediaEncoder(
        encoders,
        groups.replica_gloo_group,
        loaded_bytes=data.decode_buffer_mib * 2**20,
        dtype=config.training.params_dtype,
        device=platform.device,
        cut=CUTS[config.parallel.mrsp_mode],
        timer=timer,
        loader=MediaLoader(
            ReadPolicy(data.media_timeout, data.media_retries),
            int(data.media_prefetch_gib * 2**30),
        ),
    )
