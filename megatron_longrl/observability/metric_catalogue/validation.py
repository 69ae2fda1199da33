"""Metrics of validation during training."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import BOTH, Metric, MetricGroup
from megatron_longrl.observability.metric_catalogue.rewards import judge_metrics

WHEN = "validation"
QUESTIONS = "mean over all questions of all replicas, of each the mean over its answers"

GROUP = MetricGroup(
    "Validation",
    "In the steps of `--eval-interval`, after the last step, and as step 0 with `--eval-at-start`, "
    "where there is `--valid-data-path`. In RL questions are answered with the settings "
    "`--eval-…`, greedily by default.",
    (
        Metric(
            "valid/lm loss",
            "negative log-likelihood of the response tokens of rows that are not trained on",
            "mean over all response tokens of all replicas",
            "nats per token",
            "0 and up",
            WHEN,
            "falls with `lm loss`",
            "rises while `lm loss` falls: too many epochs",
            programs=("sft",),
        ),
        Metric(
            "valid/samples_skipped",
            "rows that could not be used",
            "sum over replicas",
            "samples",
            "0 and up",
            WHEN,
            "0",
            programs=BOTH,
        ),
        Metric(
            "valid/accuracy",
            "share of right answers",
            QUESTIONS,
            "",
            "0 to 1",
            WHEN,
            "rises with `accuracy/mean`",
            "falls while `accuracy/mean` rises: the policy learns the training questions by heart",
        ),
        Metric(
            "valid/benchmark_accuracy/NAME",
            "the figure of a benchmark that rows are of, by its published rule",
            "as the benchmark publishes it",
            "",
            "0 to 1",
            "validation with rows of `longrl data convert NAME`",
        ),
        Metric(
            "valid/accuracy_low",
            "lower end of its 95 % interval (Wilson), by the number of questions",
            "of `valid/accuracy`",
            "",
            "0 to 1",
            WHEN,
        ),
        Metric(
            "valid/accuracy_high",
            "upper end of this interval",
            "of `valid/accuracy`",
            "",
            "0 to 1",
            WHEN,
        ),
        Metric(
            "valid/accuracy/kind/KIND",
            "share of right answers to the questions of one `problem_type`",
            QUESTIONS,
            "",
            "0 to 1",
            f"{WHEN} with questions of several kinds",
        ),
        Metric(
            "valid/accuracy/frames/FRAMES",
            "share of right answers to prompts with so many frames, such as 17-32",
            QUESTIONS,
            "",
            "0 to 1",
            f"{WHEN} whose prompts fall into several such ranges",
        ),
        Metric(
            "valid/reward",
            "what the answers would earn, without `--overlong-shaping` and "
            "`--shuffled-frames-bonus`",
            f"{QUESTIONS}; answers without a reward are left out",
            "",
            "any; 0 to 1 with the default rewards alone",
            WHEN,
            "rises with `reward/mean`",
        ),
        Metric(
            "valid/format",
            "share of answers of the form `<think>…</think><answer>…</answer>`",
            QUESTIONS,
            "",
            "0 to 1",
            WHEN,
            "near 1",
        ),
        Metric(
            "valid/response_length",
            "length of an answer, its end token included",
            QUESTIONS,
            "tokens",
            "1 to `--eval-max-tokens`",
            WHEN,
        ),
        Metric(
            "valid/rewards_failed",
            "answers without a reward",
            "sum over replicas",
            "answers",
            "0 and up",
            WHEN,
            "0",
        ),
        Metric(
            "valid/rewards_timed_out",
            "those of them for which a deadline had passed",
            "sum over replicas",
            "answers",
            "0 to `valid/rewards_failed`",
            WHEN,
            "0",
        ),
        *judge_metrics("valid/", f"{WHEN} with `--rewards judge`"),
    ),
)
