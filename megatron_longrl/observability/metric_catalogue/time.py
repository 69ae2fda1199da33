"""Metrics of time."""

from __future__ import annotations

from megatron_longrl.config.section import Programs
from megatron_longrl.observability.metric_catalogue.metric import BOTH, Metric, MetricGroup

ENCODES = "steps in which media are encoded"

PHASES: tuple[tuple[str, str, str, Programs], ...] = (
    ("data", "rows become prompts: tokens, and a look into the files of media", "", BOTH),
    ("decode", "frames are read and decoded", ENCODES, BOTH),
    ("encode", "frames go through the vision tower, decoding and gathering apart", "", BOTH),
    ("gather", "embeddings are gathered from the ranks that made them", ENCODES, BOTH),
    ("rollout", "responses are generated, as far as the trainer waits for them", "", ("rl",)),
    ("reward", "the wait for scores after the last response was there", "", ("rl",)),
    ("pack", "samples become rows and micro-batches", "", BOTH),
    ("input_parity", "what is trained is compared with what the engine was given", "", ("rl",)),
    (
        "old",
        "the pass for log-probabilities before the update; near 0 where none is needed",
        "",
        ("rl",),
    ),
    (
        "reference",
        "the reference's pass; near 0 without `--grpo-kl-beta`",
        "",
        ("rl",),
    ),
    ("values", "the critic's pass; near 0 without a critic", "", ("rl",)),
    ("advantages", "advantages are computed from rewards", "", ("rl",)),
    ("record", "rollouts are written", "`--record-rollouts` with `--save`", ("rl",)),
    ("critic", "the critic's updates", "`--advantage gae` (ppo)", ("rl",)),
    ("update", "forward and backward passes and optimizer steps", "steps with an update", BOTH),
    ("sync", "new weights go to the engine", "", ("rl",)),
)
"""Name, work of the phase, the steps that have it, and its programs."""

GROUP = MetricGroup(
    "Time",
    "Seconds of the rank that writes metrics, the last one. A phase within another counts for "
    "itself only, so that the phases add up to the step, but for a small rest. Megatron's log line "
    "leaves phases out; metrics.jsonl, TensorBoard and wandb have them.",
    (
        Metric(
            "iteration-time",
            "the whole step, without validation and checkpoints",
            "of the last rank",
            "seconds",
            "0 and up",
            healthy="the same over many steps; the first ones are slower",
            unhealthy="grows: look at the phases",
            programs=BOTH,
        ),
        *(
            Metric(
                f"time/{name}",
                what,
                "of the last rank; sum over the step",
                "seconds",
                "0 and up",
                when or "every step",
                programs=programs,
            )
            for name, what, when, programs in PHASES
        ),
    ),
)
