"""Metrics of every step: its number, its size, its learning rate."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import BOTH, Metric, MetricGroup

GROUP = MetricGroup(
    "The step",
    "An SFT step is one optimizer step. An RL step generates responses and makes one or several "
    "optimizer steps from them.",
    (
        Metric(
            "iteration",
            "number of the step; 0 is the validation before the first one",
            "all ranks do the same steps",
            "steps",
            "0 and up",
            "every line of metrics.jsonl; the horizontal axis of TensorBoard and wandb",
            programs=BOTH,
        ),
        Metric(
            "consumed_train_samples",
            "samples of all steps so far, those of runs that were resumed included: rows in SFT, "
            "responses in RL",
            "sum over replicas; samples that were skipped count",
            "samples",
            "0 and up",
            programs=BOTH,
        ),
        Metric(
            "batch-size",
            "samples of the step, as it was asked for",
            "sum over replicas; samples that were skipped count",
            "samples",
            "1 and up",
            programs=BOTH,
        ),
        Metric(
            "learning-rate",
            "learning rate of the language model and the encoder in this step",
            "the same on all ranks; in RL the same in all updates of a step",
            "",
            "0 to `--lr`",
            "every step; in RL not while only the critic learns",
            "follows the warmup and decay that were asked for",
            programs=BOTH,
        ),
        Metric(
            "grad-norm",
            "norm of the gradient of all weights together, before it is clipped to `--clip-grad`",
            "over all ranks; in RL the mean over the updates of the step; 0 where the step has "
            "nothing to train on",
            "",
            "0 and up; not finite where an update was skipped for it",
            "every step; in RL not while only the critic learns",
            "of the same order over many steps",
            "jumps by a factor of 10 and more, again and again: lower `--lr`, or use more samples "
            "a step",
            programs=BOTH,
        ),
        Metric(
            "skipped_updates",
            "optimizer steps that changed no weight, because the loss or the norm of the gradient "
            "was not finite",
            "sum over the updates of the step; all ranks skip together",
            "updates",
            "0 to `updates` (SFT: 0 or 1)",
            healthy="0",
            unhealthy="above 0; three in a row end the run",
            programs=BOTH,
        ),
        Metric(
            "updates",
            "optimizer steps of the policy, skipped ones included",
            "all ranks do the same",
            "updates",
            "0 and up",
            healthy="`--grpo-iterations` x responses / `--global-batch-size`",
            unhealthy="0 outside `--critic-warmup-steps`: no group of the step teaches anything",
        ),
        Metric(
            "samples_skipped",
            "samples that were left out because their media or rows could not be used",
            "sum over replicas",
            "samples",
            "0 and up",
            healthy="0",
            unhealthy="grows: the warnings in the log name each one; `longrl check` finds them all",
            programs=BOTH,
        ),
    ),
)
