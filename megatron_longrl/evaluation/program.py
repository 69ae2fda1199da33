"""The evaluate entry point: a checkpoint answers a data set or a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.config import Config
from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.conversion.mapping import weight_stream
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import LoadRows, Row, RowError, RowProblem
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.errors import DataError
from megatron_longrl.evaluation.answers import Answers, EncodingCounts, answer, by_video
from megatron_longrl.evaluation.asking import Asking, askings
from megatron_longrl.evaluation.metrics import reward_counters
from megatron_longrl.evaluation.progress import AnswerProgress
from megatron_longrl.evaluation.report import Result, report
from megatron_longrl.evaluation.rows import read_benchmark
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rollout.build import build_engine
from megatron_longrl.rollout.weights.receiver import WeightIterator
from megatron_longrl.training.runtime import build_runtime
from megatron_longrl.training.usable_rows import usable_rows


def evaluate_checkpoint(config: Config) -> None:
    """Answer ``config.evaluation.data`` with the weights of ``config.checkpoint.load``, in every
    way that is asked for; print a table and write what --output and --plot name."""
    assert config.checkpoint.load is not None, "the configuration's rules ask for --load"
    load = _loader(config.evaluation)

    def ways_of(tokenizer: Tokenizer, seq_length: int) -> list[Asking]:
        def build(frames: int | None, template: str | None, thinks: bool) -> PromptBuilder:
            changed = config.replace(
                video_frames=frames, prompt_template=template, seq_length=seq_length
            )
            return prompt_builder(changed, tokenizer, "evaluate", thinks=thinks)

        return askings(config.evaluation, config.data, build)

    most = config.training.seq_length
    runtime = build_runtime(
        config, "evaluate", look=lambda tokenizer: (load, longest_prompt(ways_of(tokenizer, most)))
    )
    found = usable_rows(runtime, config.evaluation.data, "heldout.jsonl", load=load)
    rows = found.rows[: config.evaluation.samples]
    ways = ways_of(runtime.tokenizer, runtime.config.training.seq_length)
    for way in ways:
        way.builder.quarantine = runtime.builder.quarantine
    model = runtime.model
    load_weights(
        config.checkpoint.load,
        modules=model.modules,
        optimizers=model.optimizers,
        groups=runtime.groups,
        config=runtime.config,
    )
    with (
        closing(runtime),
        closing(build_rewards(runtime.config.reward, runtime.groups)) as rewards,
        closing(
            build_engine(runtime.config, runtime.tokenizer, runtime.groups, model.policy.module)
        ) as engine,
    ):
        weights = WeightIterator(
            lambda: weight_stream(model.modules, runtime.config, runtime.groups)
        )
        engine.update_weights(weights, version=0)
        mine = by_video(rows, runtime.groups.dp.rank(), runtime.groups.dp.size())
        total = len(mine) * len(ways)
        progress = AnswerProgress(total) if runtime.is_writer and total else None
        counts = EncodingCounts()
        answers = answer(runtime, engine, rewards, mine, ways, "evaluation", progress, counts)
        if config.evaluation.samples is None:  # else nobody knows which are among the first
            is_first = runtime.groups.dp.rank() == 0
            _add_unusable(answers, found.bad, found.problems, is_first=is_first)
        counters = reward_counters(runtime, rewards)
        report(runtime, Result(ways, answers, rows, counts, counters, found.left_out))


def longest_prompt(ways: Sequence[Asking]) -> Callable[[Row], int]:
    """The function that gives the tokens of a row's longest prompt, over all ways to ask it whose
    prompts fit into the model.

    The function raises RowError where none does, or the row cannot be used.
    """

    def length(row: Row) -> int:
        lengths = []
        for way in ways:
            try:
                lengths.append(way.builder.length(way.prepare(row)))
            except RowError as error:
                problem = error
        if not lengths:
            raise problem
        return max(lengths)

    return length


def _loader(evaluation: EvaluationSection) -> LoadRows | None:
    """The function that reads the published files of a benchmark; None where the data are rows."""
    name = evaluation.benchmark
    if name is None:
        return None

    def load(
        paths: Sequence[str | Path],
        folder_file: str = "",
        *,
        problems: list[RowProblem] | None = None,
    ) -> list[Row]:
        if len(paths) != 1:
            raise DataError(f"--benchmark {name}: give --data one folder, that of its files")
        return read_benchmark(name, Path(paths[0]))

    return load


def _add_unusable(
    answers: Sequence[Answers],
    rows: Sequence[Row],
    problems: Sequence[RowProblem],
    *,
    is_first: bool,
) -> None:
    """Count rows that were left out from the start among those without an answer; on one
    replica."""
    reasons = {problem.source: problem.reason for problem in problems}
    if is_first:
        for into in answers:
            into.unanswered += [(row, reasons[row.source]) for row in rows]
