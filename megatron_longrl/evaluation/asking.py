"""Ways to ask questions: with a number of frames, with or without reasoning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from megatron_longrl.config.data import DataSection
from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import Row, RowError
from megatron_longrl.evaluation.benchmark import benchmark_of
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.media.media_error import MediaError

THINK_ANSWER = "think-answer"
"""The prompt template that asks for reasoning, where --prompt-template names none."""

REASONING, DIRECT, AS_IN_TRAINING = "reasoning", "direct", "accuracy"
"""The modes: with reasoning, without it, and as the run's own prompts ask, which may be either."""

BuildPrompts = Callable[[int | None, str | None, bool], PromptBuilder]
"""(most frames of a video, prompt template, whether responses may reason) -> builder."""


@dataclass(frozen=True)
class Asking:
    """One way to ask."""

    frames: int | None
    """Most frames of a video; None where only --video-fps bounds them."""
    mode: str
    """One of :data:`REASONING`, :data:`DIRECT`, :data:`AS_IN_TRAINING`."""
    builder: PromptBuilder
    as_published: bool
    """Whether a benchmark's row is asked with the benchmark's own prompt."""
    sampling: FrameSampling

    @property
    def name(self) -> str:
        """The name of the way, for ids and messages."""
        return f"{self.frames or 'all'} frames, {self.mode}"

    def prepare(self, row: Row) -> Row:
        """The row with the text that is asked.

        Raises:
            RowError: a video whose subtitles are needed cannot be read.
        """
        benchmark = benchmark_of(row.metadata) if self.as_published else None
        if benchmark is None:
            return row
        ask = partial(benchmark.prompt, row, self.sampling)
        try:
            found = self.builder.read(row.media[0].path, ask) if row.media else ask()
            return replace(row, problem=found)
        except MediaError as error:
            raise RowError(row.source, str(error), error.path) from None


def default_asking(data: DataSection, builder: PromptBuilder) -> Asking:
    """The way in which a run validates: its own prompts, and a benchmark's for rows of one where
    the run has no --prompt-template."""
    sampling = FrameSampling(builder.max_frames, data.video_fps)
    as_published = data.prompt_template is None
    return Asking(builder.max_frames, AS_IN_TRAINING, builder, as_published, sampling)


def askings(evaluation: EvaluationSection, data: DataSection, build: BuildPrompts) -> list[Asking]:
    """The ways that ``evaluate`` is asked for: each number of frames in each mode."""
    sweep: list[int | None] = [*evaluation.video_frames]
    found = []
    for frames in sweep or [data.video_frames]:
        for mode in _modes(evaluation, data):
            template = data.prompt_template
            if mode == REASONING:
                template = template or THINK_ANSWER
            elif mode == DIRECT:
                template = None
            builder = build(frames, template, mode != DIRECT)
            sampling = FrameSampling(frames, data.video_fps)
            found.append(Asking(frames, mode, builder, template is None, sampling))
    return found


def _modes(evaluation: EvaluationSection, data: DataSection) -> list[str]:
    """The modes of ``--reasoning``. Without it the questions of a benchmark are asked without
    reasoning, or with the run's --prompt-template."""
    if evaluation.reasoning:
        names = {"on": REASONING, "off": DIRECT}
        return [names[value] for value in dict.fromkeys(evaluation.reasoning)]
    if evaluation.benchmark is not None:
        return [DIRECT if data.prompt_template is None else REASONING]
    return [AS_IN_TRAINING]
