"""Responses that go on where an earlier generation has stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_longrl.experience.rollouts import (
    PARTIAL,
    Completion,
    RolloutRequest,
    Segment,
    rollout_requests,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.engine_requests import EngineRequests, lengthened, whole_groups
from tests.unit.training.made_up import make_prompt

SAMPLING = SamplingSettings(n=2, max_tokens=5, new_tokens=3)


class Words:
    end_ids = (99, 98)

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def completion(tokens: list[int], version: int, reason: str = "length") -> Completion:
    logprobs = [-float(place * version) for place in range(1, len(tokens) + 1)]
    return Completion(tokens, logprobs, reason, 1.0)


def test_a_rollout_over_two_generations() -> None:
    requests = rollout_requests([make_prompt("p"), make_prompt("q")], "step")
    told: list[tuple[str, tuple[str, int], str, int]] = []
    words: Any = Words()

    tell = lambda prompt, rollout, n: told.append(  # noqa: E731
        (prompt.uid, rollout.key, rollout.reward_text, n)
    )

    def ask(requests: list[RolloutRequest], number: int, version: int) -> EngineRequests:
        return EngineRequests(
            requests,
            [number],
            [10, 20],
            SAMPLING,
            words,
            media={},
            weight_version=version,
            on_rollout=tell if number == 1 else None,
        )

    first = ask(requests, 1, version=1)
    (asked,) = first.requests
    assert (asked.number, asked.position, asked.seed) == (1, 0, 20)
    assert (list(asked.wanted), asked.max_tokens) == ([0, 1], 3)
    first.deliver(asked, 0, completion([7, 8, 9], 1))
    assert first.is_delivered(asked, 0) and not first.is_delivered(asked, 1)
    first.deliver(asked, 1, completion([7, 2], 1, "stop"))
    before = tuple(first.rollouts[1, index] for index in range(2))
    assert [r.finish_reason for r in before] == [PARTIAL, "stop"]
    assert told == [("q", ("step.1", 1), "7 2", 2)], "an open rollout is not scored"

    requests[1] = replace(requests[1], partial=before)
    second = ask(requests, 1, version=2)
    (asked,) = second.requests
    assert (list(asked.wanted), asked.prefix.tolist()) == ([0], [7, 8, 9])
    assert asked.max_tokens == 2, "the longest rollout counts both segments"
    second.deliver(asked, 0, completion([4, 5], 2))
    other = ask(requests, 0, version=1)
    for index in range(2):
        other.deliver(other.requests[0], index, completion([1], 2, "stop"), 2)
    parts = [(part.rollouts, part.inputs) for part in (second, other)]
    _, group = whole_groups(requests, 2, parts)
    assert group.is_complete and group.rollouts[1] is before[1]
    whole = group.rollouts[0]
    assert whole.key == ("step.1", 0)
    assert whole.token_ids.tolist() == [7, 8, 9, 4, 5] and whole.text == "7 8 9 4 5"
    assert whole.logprobs.tolist() == [-1, -2, -3, -2, -4]
    assert whole.segments == (Segment(3, 1), Segment(2, 2))
    assert (whole.weight_version, whole.finish_reason, whole.seconds) == (2, "length", 2.0)
    assert told[1:] == [("q", ("step.1", 0), "7 8 9 4 5", 2)]


@pytest.mark.parametrize(
    ("tokens", "opening", "expected"),
    [
        ([7, 8], "", "7 8"),
        ([7, 8, 99], "", "7 8"),
        ([7, 99, 8, 99, 98], "", "7 99 8"),
        ([99], "", ""),
        ([7, 99], "<think>", "<think>7"),
    ],
)
def test_rewards_see_no_end_tokens(tokens: list[int], opening: str, expected: str) -> None:
    """Records keep the text that was drawn."""
    prompt = replace(make_prompt("p"), opening=opening)
    told: list[str] = []
    words: Any = Words()
    tell = lambda prompt, rollout, n: told.append(rollout.reward_text)  # noqa: E731
    requests = rollout_requests([prompt], "step")
    sampling = SamplingSettings(n=1, max_tokens=9)
    mine = EngineRequests(
        requests, [0], [10], sampling, words, media={}, weight_version=1, on_rollout=tell
    )
    mine.deliver(mine.requests[0], 0, completion(tokens, 1, "stop"))
    received = mine.rollouts[0, 0]
    drawn = " ".join(map(str, tokens))
    assert (received.reward_text, received.text, told) == (expected, drawn, [expected])


def test_a_prompt_grows_by_what_was_said() -> None:
    prompt = make_prompt("p")
    grown = lengthened(prompt, torch.tensor([5, 6]))
    assert grown.token_ids.tolist() == [*prompt.token_ids.tolist(), 5, 6]
    assert grown.positions.tolist() == list(range(len(grown.token_ids)))
    assert grown.media_mask[-2:].tolist() == [False, False]
    assert lengthened(prompt, torch.tensor([], dtype=torch.long)) is prompt
