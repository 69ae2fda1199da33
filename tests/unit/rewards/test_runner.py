"""Rewards of groups: the weights, what fails, what is counted, and that scoring begins at once."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.rewards.runner import RewardRunner
from tests.unit.made_up_config import make_config
from tests.unit.rewards.endpoint import serve
from tests.unit.rewards.samples import write_file
from tests.unit.training.made_up import make_prompt, make_rollout

RIGHT = "<think>x</think><answer>B</answer>"
WRONG = "<think>x</think><answer>C</answer>"
NO_THOUGHT = "<answer>B</answer>"
NONE = {"rewards_failed": 0.0, "rewards_timed_out": 0.0}

FUNCTIONS = """
import time

def good(response):
    return {"score": float(len(response)), "words": len(response.split())}

def odd(response):
    if response == "forever":
        time.sleep(1000)
    if response == "raise":
        raise ValueError("no")
    odd = {"nan": float("nan"), "text": "5", "none": None, "1e39": 1e39, "3e38": 3e38}
    return odd.get(response, 2.0)

def group(responses):
    return [1.0 / len(responses)] * (len(responses) + ("long" in responses))

def noted(response, folder):
    open(f"{folder}/{response}", "w").close()
    return 1.0
"""


def make_group(*texts: str, name: str = "p") -> RolloutGroup:
    """The answer of every made-up prompt is B."""
    rollouts = [make_rollout(3, k, text, group_id=name, index=k) for k, text in enumerate(texts)]
    return RolloutGroup(name, make_prompt("p"), rollouts)


@contextmanager
def runner(**fields: Any) -> Iterator[RewardRunner]:
    made = RewardRunner(make_config(**fields).reward)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write_file(tmp_path, FUNCTIONS)


# ---- Sums ----


def test_reward_is_the_weighted_sum() -> None:
    groups = [make_group(RIGHT, WRONG, NO_THOUGHT, "B"), make_group(WRONG, name="q")]
    with runner(rewards=["accuracy=0.7", "format=0.2"]) as rewards:
        scored = rewards.collect(groups)
        assert rewards.pop_counters() == NONE
    torch.testing.assert_close(scored[0].rewards, torch.tensor([0.9, 0.2, 0.7, 0.7]))
    torch.testing.assert_close(scored[1].rewards, torch.tensor([0.2]))
    assert scored[0].valid.tolist() == [True] * 4
    assert scored[0].reward_terms == {"accuracy": [1, 0, 1, 1], "format": [1, 1, 0, 0]}
    assert [group.accuracy for group in scored] == [0.75, 0.0]
    assert [group.metrics for group in scored] == [{"format": 0.5}, {"format": 1.0}]


def test_the_default_is_mostly_accuracy() -> None:
    group = make_group(RIGHT, WRONG, NO_THOUGHT)
    with runner() as rewards:
        (scored,) = rewards.collect([group])
    torch.testing.assert_close(scored.rewards, torch.tensor([1.0, 0.1, 0.9]))


@pytest.mark.parametrize("text", [RIGHT, RIGHT + "<|im_end|>"])
def test_the_end_of_turn_is_no_part_of_the_form(text: str) -> None:
    group = make_group(text)
    with runner() as rewards:
        (scored,) = rewards.collect([group])
    torch.testing.assert_close(scored.rewards, torch.tensor([1.0]))


def test_text_after_the_end_of_turn_breaks_the_form() -> None:
    group = make_group(RIGHT + "<|im_end|>x", RIGHT + "<|im_end|><|im_end|>")
    with runner() as rewards:
        (scored,) = rewards.collect([group])
    assert scored.metrics["format"] == 0.0


def test_functions_replace_the_default(file: str) -> None:
    group = make_group("a b", "abcd")
    with runner(reward_function=[f"{file}:good=0.5"]) as rewards:
        (scored,) = rewards.collect([group])
    torch.testing.assert_close(scored.rewards, torch.tensor([1.5, 2.0]))
    assert scored.reward_terms == {"good": [3.0, 4.0], "good/words": [2.0, 1.0]}
    assert scored.accuracy == 0.0 and scored.metrics == {"format": 0.0}, "known all the same"


def test_functions_beside_built_in_rewards(file: str) -> None:
    group = make_group(RIGHT, WRONG)
    functions = [f"{file}:good=0", f"{file}:group=-1"]
    with runner(rewards=["accuracy"], reward_function=functions) as rewards:
        (scored,) = rewards.collect([group])
    torch.testing.assert_close(scored.rewards, torch.tensor([0.5, -0.5]))
    assert scored.reward_terms["good"] == [len(RIGHT), len(WRONG)], "weight 0 is reported"


# ---- Failures ----


def test_a_failure_costs_its_own_sample(file: str, caplog: pytest.LogCaptureFixture) -> None:
    texts = ("fine", "forever", "raise", "nan", "text", "none", "fine")
    group = make_group(*texts)
    with (
        caplog.at_level(logging.WARNING),
        runner(reward_function=[f"{file}:odd"], reward_timeout=1.0) as rewards,
    ):
        (scored,) = rewards.collect([group])
        counts = rewards.pop_counters()
        assert rewards.pop_counters() == NONE, "counted once"
    assert counts == {"rewards_failed": 5.0, "rewards_timed_out": 1.0}
    assert scored.rewards.tolist() == [2, 0, 0, 0, 0, 0, 2]
    assert scored.valid.tolist() == [True, *[False] * 5, True]
    assert scored.reward_terms["odd"] == [2.0, None, None, None, None, None, 2.0]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5
    uid = group.prompt.uid
    assert f"no reward {file}:odd for response 1 to {uid}: gave no result within 1 s" in lines
    assert f"no reward {file}:odd for response 2 to {uid}: raised ValueError('no')" in lines
    assert (
        f"no reward {file}:odd for response 4 to {uid}: returned '5', which is no finite number"
        in lines
    )


def test_what_float32_cannot_hold_costs_its_own_sample(
    file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rewards are kept in float32, in which 1e39 and 2 x 3e38 are infinite."""
    group = make_group("fine", "1e39", "3e38")
    with caplog.at_level(logging.WARNING), runner(reward_function=[f"{file}:odd"]) as rewards:
        (scored,) = rewards.collect([group])
        assert rewards.pop_counters()["rewards_failed"] == 1
    assert scored.valid.tolist() == [True, False, True]
    assert torch.isfinite(scored.rewards).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"no reward {file}:odd for response 1 to {group.prompt.uid}: returned 1e+39, which is no "
        "finite number in float32"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING), runner(reward_function=[f"{file}:odd=-2"]) as rewards:
        (scored,) = rewards.collect([group])
        assert rewards.pop_counters()["rewards_failed"] == 2
    assert scored.valid.tolist() == [True, False, False]
    assert scored.rewards.tolist() == [-4.0, 0.0, 0.0]
    assert "response 2 to" in caplog.text and "weighted sum is no finite number" in caplog.text


def test_a_list_of_another_length_costs_its_group(file: str) -> None:
    groups = [
        make_group(*texts, name=f"group {k}")
        for k, texts in enumerate((("a", "b"), ("long", "b"), ("c", "d")))
    ]
    with runner(reward_function=[f"{file}:group"]) as rewards:
        scored = rewards.collect(groups)
        assert rewards.pop_counters()["rewards_failed"] == 2
    assert [g.valid.tolist() for g in scored] == [
        [True, True],
        [False, False],
        [True, True],
    ]


def test_what_has_no_weight_may_fail(file: str) -> None:
    group = make_group("raise", "fine")
    with runner(rewards=["format"], reward_function=[f"{file}:odd=0"]) as rewards:
        (scored,) = rewards.collect([group])
        assert rewards.pop_counters() == NONE
    assert scored.valid.tolist() == [True, True]
    assert scored.reward_terms["odd"] == [None, 2.0]


def test_metrics_of_accuracy_fail_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A row whose accuracy cannot be computed, in a run that does not ask for it."""
    group = make_group(RIGHT)
    object.__setattr__(group.prompt.row, "metadata", {"reward": "numeric"})
    with caplog.at_level(logging.INFO), runner(rewards=["format"]) as rewards:
        (scored,) = rewards.collect([group])
        assert rewards.pop_counters() == NONE
    assert scored.accuracy == 0.0 and scored.metrics == {"format": 1.0} and not caplog.records
    with runner(rewards=["accuracy", "format"]) as rewards:
        (scored,) = rewards.collect([group])
        assert rewards.pop_counters()["rewards_failed"] == 1


def test_a_step_waits_only_so_long(file: str, caplog: pytest.LogCaptureFixture) -> None:
    """Although every call still has its time."""
    group = make_group(*["forever"] * 40)
    fields = {"reward_timeout": 1000.0, "reward_step_timeout": 0.5, "reward_workers": 1}
    with runner(rewards=["format"], reward_function=[f"{file}:odd"], **fields) as rewards:
        rewards.collect([group])
        assert rewards.pop_counters() == {"rewards_failed": 40.0, "rewards_timed_out": 40.0}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 40 and all("(--reward-step-timeout)" in line for line in lines)


def test_the_row_decides_what_is_right() -> None:
    group = make_group(r"<answer>\frac{1}{2}</answer>", "<answer>2</answer>")
    object.__setattr__(group.prompt.row, "answer", "0.5")
    object.__setattr__(group.prompt.row, "metadata", {"answer_type": "math"})
    with runner(rewards=["accuracy"]) as rewards:
        (scored,) = rewards.collect([group])
    assert scored.rewards.tolist() == [1.0, 0.0]


# ---- A judge ----


def test_a_judge_in_the_sum() -> None:
    def answer(prompt: str, number: int) -> Any:
        return "what?" if "bad" in prompt else "Score: 0.5"

    group = make_group(RIGHT, "bad", WRONG)
    with serve(answer) as endpoint:
        fields = {"judge_url": endpoint.url, "judge_model": "m", "judge_retries": 0}
        with runner(rewards=["judge=2", "format"], **fields) as rewards:
            (scored,) = rewards.collect([group])
            counts = rewards.pop_counters()
    assert scored.rewards.tolist() == [2.0, 0.0, 2.0]
    assert scored.valid.tolist() == [True, False, True]
    assert scored.reward_terms == {"judge": [0.5, None, 0.5], "format": [1.0, 0.0, 1.0]}
    assert counts["judge/requests"] == 3 and counts["judge/failures"] == 1
    assert counts["rewards_failed"] == 1


def test_a_judge_that_is_down_or_slow_costs_samples_and_no_step() -> None:
    group = make_group(RIGHT, WRONG)
    with serve(lambda *_: "1", seconds=3.0) as endpoint:
        fields = {"judge_url": endpoint.url, "judge_model": "m", "judge_timeout": 0.3}
        with runner(rewards=["judge"], **fields) as rewards:
            (scored,) = rewards.collect([group])
            counts = rewards.pop_counters()
    assert (counts["rewards_failed"], counts["rewards_timed_out"]) == (2, 2)
    fields |= {"judge_timeout": 20.0, "judge_retries": 0}  # Nobody listens there any more.
    with runner(rewards=["judge"], **fields) as rewards:
        (scored,) = rewards.collect([group])
        counts = rewards.pop_counters()
    assert (counts["rewards_failed"], counts["rewards_timed_out"]) == (2, 0)
    assert not scored.valid.any()


# ---- Beside generation ----


def test_a_response_is_scored_as_soon_as_it_is_submitted(file: str, tmp_path: Path) -> None:
    group = make_group("one", "two")
    fields = {"reward_function": [f"{file}:noted"], "reward_kwargs": {"folder": str(tmp_path)}}
    with runner(**fields) as rewards:
        rewards.submit(group.prompt, group.rollouts[1], 2)
        deadline = time.monotonic() + 20
        while not (tmp_path / "two").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "two").exists() and not (tmp_path / "one").exists()
        rewards.submit(group.prompt, group.rollouts[0], 2)
        (scored,) = rewards.collect([group])
    assert scored.rewards.tolist() == [1.0, 1.0]


def test_a_group_is_scored_when_all_of_it_is_there(file: str) -> None:
    groups = [make_group("a", "b"), make_group("c", "d", "e", name="q")]
    with runner(reward_function=[f"{file}:group"]) as rewards:
        for group in groups:
            for rollout in reversed(group.rollouts):
                rewards.submit(group.prompt, rollout, len(group.rollouts))
        scored = rewards.collect(groups)
    found = [value for g in scored for value in g.rewards.tolist()]
    assert found == pytest.approx([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("submitted", [["a"], ["a", "x"], ["a", "b", "c"]])
def test_what_was_submitted_of_another_group_does_not_count(
    file: str, submitted: list[str]
) -> None:
    group = make_group("a", "bbb")
    with runner(reward_function=[f"{file}:good", f"{file}:group"]) as rewards:
        for rollout in make_group(*submitted).rollouts:
            rewards.submit(group.prompt, rollout, len(submitted))
        (scored,) = rewards.collect([group])
    assert scored.rewards.tolist() == [1.5, 3.5]


def test_prompts_of_one_uid_are_told_apart() -> None:
    """A row that a step meets twice."""
    groups = [make_group(RIGHT, WRONG), make_group(WRONG, WRONG, name="q")]
    with runner(rewards=["accuracy"]) as rewards:
        for index in range(2):
            for group in groups:
                rewards.submit(group.prompt, group.rollouts[index], 2)
        scored = rewards.collect(groups)
    assert [g.rewards.tolist() for g in scored] == [[1, 0], [0, 0]]


# ---- Mistakes that end the run at its start ----


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"reward_function": ["{file}:missing"]}, "has no function 'missing'"),
        ({"reward_function": ["nothing.py:f"]}, "nothing.py: no such file"),
        (
            {"reward_function": ["{file}:good"], "reward_kwargs": {"limit": 1}},
            "--reward-kwargs: no function of --reward-function takes an argument 'limit'",
        ),
        ({"reward_function": ["{file}:noted"]}, "needs an argument 'folder'"),
        (
            {
                "rewards": ["judge"],
                "judge_url": "http://x",
                "judge_model": "m",
                "judge_prompt": "none.txt",
            },
            "none.txt: cannot read the judge's prompt",
        ),
    ],
)
def test_mistakes(file: str, fields: dict[str, Any], line: str) -> None:
    functions = [text.format(file=file) for text in fields.get("reward_function", [])]
    with pytest.raises(UserError) as error:
        RewardRunner(make_config(**{**fields, "reward_function": functions}).reward)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_started_that_is_not_needed() -> None:
    with runner() as rewards:
        rewards.collect([make_group(RIGHT)])
        assert rewards._scorer._loop is None


def test_closing_twice() -> None:
    made = RewardRunner(make_config(rewards=["rouge"]).reward)
    (scored,) = made.collect([make_group("the B")])
    made.close()
    made.close()
    assert math.isclose(float(scored.rewards[0]), 2 / 3, rel_tol=1e-6)
