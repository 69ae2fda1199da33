"""Metrics of responses and their rewards."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import BOTH, Metric, MetricGroup

GROUPS = "mean over all groups of all replicas"
RESPONSES = "sum over replicas; greedy responses of ReMax and those to shuffled frames count"

JUDGE = (
    ("requests", "requests sent to the judge, further tries included", "requests"),
    ("input_tokens", "tokens that the judge has read, as its endpoint counts them", "tokens"),
    ("output_tokens", "tokens that the judge has written, as its endpoint counts them", "tokens"),
    ("cost", "price of these tokens by `--judge-price-per-million-…-tokens`", "currency"),
    ("cache_hits", "responses whose judgement was known already or asked for", "responses"),
    ("failures", "responses about which the judge gave no usable score", "responses"),
)
"""Name, meaning and unit."""


def judge_metrics(prefix: str, when: str) -> tuple[Metric, ...]:
    """Return the metrics of the judge."""
    unhealthy = {"failures": "above 0: the warnings in the log name each one"}
    return tuple(
        Metric(
            f"{prefix}judge/{name}",
            meaning,
            "sum over replicas",
            unit,
            "0 and up",
            when,
            unhealthy=unhealthy.get(name, ""),
            healthy="0" if name == "failures" else "",
        )
        for name, meaning, unit in JUDGE
    )


GROUP = MetricGroup(
    "Responses and rewards",
    "Of all responses that were generated for the step, groups that dynamic sampling has left out "
    "included. First the mean over the responses of a group is taken, then the mean over groups, "
    "so that a group counts once however many of its responses have a reward.",
    (
        Metric(
            "reward/mean",
            "what responses earn: the weighted sum of the rewards, after `--overlong-shaping` and "
            "`--shuffled-frames-bonus`",
            f"{GROUPS}; responses without a reward are left out; 0 where none has one",
            "",
            "any; 0 to 1 with the default rewards alone",
            healthy="rises over tens of steps",
            unhealthy="0 in the first two steps, which the run warns of: no reward is earned, see "
            "docs/rewards.md; or it falls for many steps: lower `--lr`",
        ),
        Metric(
            "reward/NAME",
            "score of the reward NAME, one of `--rewards` and `--reward-function`, without its "
            "weight",
            f"{GROUPS}; responses without this score are left out",
            "",
            "as the reward; 0 to 1 for the built-in ones",
            "every step, for every reward that is asked for, those of weight 0 included",
            "rises with `reward/mean`",
            "one rises while another falls: change their weights",
        ),
        Metric(
            "reward/NAME/NUMBER",
            "a further number that the function NAME has returned beside its score",
            f"{GROUPS}; responses without it are left out",
            "",
            "as the function",
            "`--reward-function`, where the function returns such numbers",
        ),
        Metric(
            "accuracy/mean",
            "share of right responses, by the reward accuracy, whatever the rewards are",
            f"{GROUPS}; what could not be judged counts as wrong",
            "",
            "0 to 1",
            healthy="rises over tens of steps; 0.2 to 0.8 teaches most",
            unhealthy="stays at 0 (too hard, or answers are not found) or at 1 (too easy)",
        ),
        Metric(
            "accuracy/kind/KIND",
            "the same for the questions of one `problem_type`",
            GROUPS,
            "",
            "0 to 1",
            "steps with questions of several kinds",
        ),
        Metric(
            "accuracy/frames/FRAMES",
            "the same for prompts with so many frames, such as 17-32",
            GROUPS,
            "",
            "0 to 1",
            "steps whose prompts fall into several such ranges",
        ),
        Metric(
            "accuracy_shuffled",
            "share of right responses to the same questions with shuffled frames",
            "mean over the groups that have a video of several frames",
            "",
            "0 to 1",
            "`--shuffled-frames-bonus`",
            "below `accuracy/mean`: the order of the frames helps",
            "equal to `accuracy/mean`: questions can be answered without it",
        ),
        Metric(
            "format/mean",
            "share of responses of the form `<think>…</think><answer>…</answer>`, whatever the "
            "rewards are",
            GROUPS,
            "",
            "0 to 1",
            healthy="comes near 1 within tens of steps",
            unhealthy="0: no answer is found in such responses; give `--prompt-template "
            "think-answer`, or train by SFT first. Or it rises while accuracy falls, which the run "
            "warns of: give format less weight",
        ),
        Metric(
            "response_length/mean",
            "length of a response, its end token included",
            "RL: mean over all groups; SFT: mean over the responses of the step",
            "tokens",
            "1 to `--rollout-max-tokens` (RL)",
            healthy="changes slowly",
            unhealthy="grows towards `--rollout-max-tokens`, or falls to a few tokens",
            programs=BOTH,
        ),
        Metric(
            "response_length/max",
            "the longest response",
            "over all replicas and micro-batches",
            "tokens",
            "1 and up",
            programs=("sft",),
        ),
        Metric(
            "response_length/clip_ratio",
            "share of responses that were cut at `--rollout-max-tokens`",
            GROUPS,
            "",
            "0 to 1",
            healthy="a few per cent",
            unhealthy="above 0.5 and twice its first values, which the run warns of: raise "
            "`--rollout-max-tokens`, or give `--overlong-shaping`",
        ),
        Metric(
            "zero_advantage/mean",
            "share of groups whose responses all earn the same",
            "over all groups of all replicas",
            "",
            "0 to 1",
            healthy="below 0.5",
            unhealthy="above 0.8 over ten steps, which the run warns of where the advantage "
            "compares the responses of a group, since such groups teach nothing then: take "
            "questions that are neither too easy nor too hard, or give `--dynamic-sampling`",
        ),
        Metric(
            "rewards_failed",
            "responses without a reward, because one that has a weight could not be computed; they "
            "are not trained on",
            RESPONSES,
            "responses",
            "0 and up",
            healthy="0",
            unhealthy="above 0: the lines `no reward …` in the log name each one",
        ),
        Metric(
            "rewards_timed_out",
            "those of them for which a deadline had passed",
            RESPONSES,
            "responses",
            "0 to `rewards_failed`",
            healthy="0",
            unhealthy="above 0: raise `--reward-timeout`, `--reward-step-timeout` or "
            "`--judge-timeout`",
        ),
        *judge_metrics("", "`--rewards judge`"),
        Metric(
            "sampling_rounds",
            "rounds of generation until the step had enough groups",
            "the same on all ranks",
            "rounds",
            "1 to `--dynamic-sampling-max-tries`",
            "`--dynamic-sampling`",
            "1 to 3",
            "at its limit: too few questions are neither too easy nor too hard",
        ),
    ),
)
