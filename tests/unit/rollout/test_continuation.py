"""Responses that go on where an earlier generation has stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_longrl.experience.rollouts import PARTIAL, Rollout
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.continuation import Share, lengthened, whole_groups
from tests.unit.training.made_up import make_prompt

SAMPLING = SamplingSettings(n=2, max_tokens=5, new_tokens=3)


class Words:
    end_ids = (99, 98)

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def part(tokens: list[int], version: int, reason: str = "length") -> Rollout:
    logprobs = -torch.arange(1.0, len(tokens) + 1) * version
    return Rollout(torch.tensor(tokens), logprobs, "", reason, version)


def test_a_response_over_two_generations() -> None:
    prompts = [make_prompt("p"), make_prompt("q")]
    told: list[tuple[str, int, str, int]] = []
    words: Any = Words()

    def share(begun: Any) -> Share:
        tell = lambda prompt, *rest: told.append((prompt.uid, *rest))  # noqa: E731
        return Share(prompts, [1], begun, SAMPLING, words, tell)

    first = share({})
    assert [(b.place, list(b.wanted), b.max_tokens) for b in first.beginnings] == [(1, [0, 1], 3)]
    responses = {
        (0, 0): first.receive(0, 0, part([7, 8, 9], 1)),
        (0, 1): first.receive(0, 1, part([7, 2], 1, "stop")),
    }
    assert [r.finish_reason for r in responses.values()] == [PARTIAL, "stop"]
    assert told == [("q", 1, "", 2)], "an open response is not scored"
    before = [responses[0, 0], responses[0, 1]]

    second = share({1: before})
    (beginning,) = second.beginnings
    assert (list(beginning.wanted), beginning.prefix.tolist()) == ([0], [7, 8, 9])
    assert beginning.max_tokens == 2, "the longest response counts both parts"
    new = second.by_prompt({(0, 0): second.receive(0, 0, part([4, 5], 2))})
    others = {(0, j): part([1], 2, "stop") for j in range(2)}
    _, group = whole_groups(prompts, 2, {1: before}, [(new, {}), (others, {})])
    assert group.is_complete and group.rollouts[1] is before[1]
    whole = group.rollouts[0]
    assert whole.token_ids.tolist() == [7, 8, 9, 4, 5] and whole.text == "7 8 9 4 5"
    assert whole.logprobs.tolist() == [-1, -2, -3, -2, -4]
    assert (whole.parts, whole.finish_reason) == (((3, 1), (2, 2)), "length")
    assert told[1:] == [("q", 0, "7 8 9 4 5", 2)]


@pytest.mark.parametrize(
    ("tokens", "opening", "expected"),
    [
        ([7, 8], "", "drawn"),
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
    tell = lambda prompt, index, text, n: told.append(text)  # noqa: E731
    share = Share([prompt], [0], {}, SamplingSettings(n=1, max_tokens=9), words, tell)
    response = part(tokens, 1, "stop")
    response.text = "drawn"
    received = share.receive(0, 0, response)
    assert (received.visible, received.text, told) == (expected, "drawn", [expected])


def test_a_prompt_grows_by_what_was_said() -> None:
    prompt = make_prompt("p")
    grown = lengthened(prompt, torch.tensor([5, 6]))
    assert grown.token_ids.tolist() == [*prompt.token_ids.tolist(), 5, 6]
    assert grown.positions.tolist() == list(range(len(grown.token_ids)))
    assert grown.media_mask[-2:].tolist() == [False, False]
    assert lengthened(prompt, torch.tensor([], dtype=torch.long)) is prompt
