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
from megatron_longrl.rollout.continuation import Share, lengthened, whole_groups
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

    def share(requests: list[RolloutRequest]) -> Share:
        tell = lambda prompt, rollout, n: told.append(  # noqa: E731
            (prompt.uid, rollout.key, rollout.visible, n)
        )
        return Share(requests, [1], SAMPLING, words, tell)

    first = share(requests)
    assert [(b.place, list(b.wanted), b.max_tokens) for b in first.beginnings] == [(1, [0, 1], 3)]
    before = (
        first.receive(0, 0, completion([7, 8, 9], 1), 1),
        first.receive(0, 1, completion([7, 2], 1, "stop"), 1),
    )
    assert [r.finish_reason for r in before] == [PARTIAL, "stop"]
    assert told == [("q", ("step.1", 1), "7 2", 2)], "an open rollout is not scored"

    requests[1] = replace(requests[1], partial=before)
    second = share(requests)
    (beginning,) = second.beginnings
    assert (list(beginning.wanted), beginning.prefix.tolist()) == ([0], [7, 8, 9])
    assert beginning.max_tokens == 2, "the longest rollout counts both segments"
    new = second.by_prompt({(0, 0): second.receive(0, 0, completion([4, 5], 2), 2)})
    other = Share(requests, [0], SAMPLING, words, None)
    others = {(0, j): other.receive(0, j, completion([1], 2, "stop"), 2) for j in range(2)}
    _, group = whole_groups(requests, 2, [(new, {}), (others, {})])
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
    tell = lambda prompt, rollout, n: told.append(rollout.visible)  # noqa: E731
    requests = rollout_requests([prompt], "step")
    share = Share(requests, [0], SamplingSettings(n=1, max_tokens=9), words, tell)
    received = share.receive(0, 0, completion(tokens, 1, "stop"), 1)
    drawn = " ".join(map(str, tokens))
    assert (received.visible, received.text, told) == (expected, drawn, [expected])


def test_a_prompt_grows_by_what_was_said() -> None:
    prompt = make_prompt("p")
    grown = lengthened(prompt, torch.tensor([5, 6]))
    assert grown.token_ids.tolist() == [*prompt.token_ids.tolist(), 5, 6]
    assert grown.positions.tolist() == list(range(len(grown.token_ids)))
    assert grown.media_mask[-2:].tolist() == [False, False]
    assert lengthened(prompt, torch.tensor([], dtype=torch.long)) is prompt
