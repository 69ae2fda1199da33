"""Figures of the summary that evaluate writes."""

from __future__ import annotations

from dataclasses import replace

from megatron_longrl.observability.metric_catalogue.metric import Metric, MetricGroup
from megatron_longrl.observability.metric_catalogue.rewards import judge_metrics

ANSWERS = "mean over all questions, of each the mean over its answers"
ALWAYS = "always"
BENCHMARK = "rows of a benchmark"

GROUP = MetricGroup(
    "The summary of evaluate",
    "`longrl evaluate --output FILE` writes one JSON object with these keys and `answers`, a list "
    "with every question and its answers. The table that it prints has the same figures.",
    tuple(
        replace(metric, programs=("evaluate",))
        for metric in (
            Metric("accuracy", "share of right answers", ANSWERS, "", "0 to 1", ALWAYS),
            Metric(
                "accuracy_low",
                "lower end of its 95 % interval (Wilson), by the number of questions",
                "of `accuracy`",
                "",
                "0 to 1",
                ALWAYS,
            ),
            Metric(
                "accuracy_high", "upper end of this interval", "of `accuracy`", "", "0 to 1", ALWAYS
            ),
            Metric(
                "by_problem_type",
                "accuracy of each `problem_type`: an object with a number for each",
                ANSWERS,
                "",
                "0 to 1",
                ALWAYS,
            ),
            Metric(
                "chance_accuracy",
                "accuracy of a guess among the options of each question; a question without "
                "options counts as 0",
                "mean over all questions",
                "",
                "0 to 1",
                ALWAYS,
                unhealthy="as large as `accuracy`: nothing was learned",
            ),
            Metric(
                "majority_accuracy",
                "accuracy of always giving the most frequent reference answer",
                "over all questions",
                "",
                "0 to 1",
                ALWAYS,
                unhealthy="as large as `accuracy`: nothing was learned",
            ),
            Metric(
                "samples",
                "questions that were asked, those without an answer or a score included",
                "sum",
                "questions",
                "1 and up",
                ALWAYS,
            ),
            Metric(
                "unscored",
                "questions without an answer or a score, which count as wrong; `unscored_rows` is "
                "the list of them, each with its `problem_id` and its `reason`",
                "sum over replicas",
                "questions",
                "0 and up",
                ALWAYS,
                "0",
            ),
            Metric(
                "unscored_rows",
                "the rows that `unscored` counts, a list of objects",
                "of all replicas",
                "",
                "any number of objects",
                ALWAYS,
            ),
            Metric(
                "by_frames",
                'accuracy by `--video-frames`: `{"8": {"reasoning": 0.7, "direct": 0.6}}`, or '
                '`{"8": {"accuracy": 0.7}}` without `--reasoning`',
                ANSWERS,
                "",
                "0 to 1",
                ALWAYS,
            ),
            Metric(
                "encoding",
                "what was encoded once for all numbers of frames: `media`, `encoded` (items by "
                "kind) and `asked` (items that all prompts hold)",
                "sum over ranks",
                "",
                "0 and up",
                ALWAYS,
            ),
            Metric(
                "ways",
                "these figures for each number of frames (`frames`) with and without reasoning "
                "(`mode`); those at the top are of the most frames, with reasoning",
                "as at the top",
                "",
                "a list of objects",
                "several numbers of frames, or `--reasoning on off`",
            ),
            Metric(
                "benchmark",
                "name of the benchmark that all rows are of",
                "all rows",
                "",
                "a name",
                BENCHMARK,
            ),
            Metric("rule", "the benchmark's scoring rule", "all rows", "", "a line", BENCHMARK),
            Metric(
                "benchmark_accuracy",
                "the benchmark's own figure, by its published rule",
                "as the benchmark publishes it",
                "",
                "0 to 1",
                BENCHMARK,
            ),
            Metric(
                "by_category",
                "accuracy with interval, `benchmark_accuracy`, `chance_accuracy`, "
                "`majority_accuracy` and `samples` for each value of each kind of category",
                ANSWERS,
                "",
                "0 to 1",
                BENCHMARK,
            ),
            Metric(
                "samples_skipped",
                "questions that could not be used",
                "sum over replicas",
                "questions",
                "0 and up",
                ALWAYS,
                "0",
            ),
            Metric(
                "reward",
                "what the answers would earn; null where none has a reward",
                f"{ANSWERS}; answers without a reward are left out",
                "",
                "any; 0 to 1 with the default rewards alone",
                ALWAYS,
            ),
            Metric(
                "format",
                "share of answers of the form `<think>…</think><answer>…</answer>`",
                ANSWERS,
                "",
                "0 to 1",
                ALWAYS,
            ),
            Metric(
                "well_formed",
                "share of responses, reasoned or direct, that choose one of the question's "
                "options, or, where it has none, say anything behind the thought",
                ANSWERS,
                "",
                "0 to 1",
                ALWAYS,
                "1",
            ),
            Metric(
                "response_length",
                "length of an answer, its end token included",
                ANSWERS,
                "tokens",
                "1 to `--eval-max-tokens`",
                ALWAYS,
            ),
            Metric(
                "rewards_failed",
                "answers without a reward",
                "sum over replicas",
                "answers",
                "0 and up",
                ALWAYS,
                "0",
            ),
            Metric(
                "rewards_timed_out",
                "those of them for which a deadline had passed",
                "sum over replicas",
                "answers",
                "0 to `rewards_failed`",
                ALWAYS,
                "0",
            ),
            *judge_metrics("", "`--rewards judge`"),
        )
    ),
)
