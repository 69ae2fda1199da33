"""Responses that go on where an earlier generation has stopped (partial rollouts).

A response that is not complete within ``SamplingSettings.new_tokens`` goes on in a later
generation, with newer weights, from its tokens so far; those keep their log-probabilities (Kimi
k1.5, https://arxiv.org/abs/2501.12599, section 2.6.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.data.tokenizer import ending
from megatron_longrl.experience.rollouts import (
    PARTIAL,
    Completion,
    Rollout,
    RolloutGroup,
    RolloutRequest,
    Segment,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.experience.inputs import InputRecord
    from megatron_longrl.experience.rollouts import OnRollout

Rollouts = dict[tuple[int, int], Rollout]
"""The rollouts by the number of the request in the generation, and their index."""


@dataclass(frozen=True)
class Beginning:
    """Responses to one prompt that begin with the same tokens."""

    place: int
    """Of the prompt."""
    wanted: Sequence[int]
    """Indices of the responses."""
    prefix: Tensor
    """long [k]: tokens of the response so far; none, unless one response goes on."""
    max_tokens: int
    """Most tokens to add."""


class Share:
    """What one engine generates of a generation, and what becomes of it.

    Args:
        requests: the requests of the whole generation.
        places: the numbers of the engine's requests among them.
        on_rollout: told of complete rollouts.
    """

    def __init__(
        self,
        requests: Sequence[RolloutRequest],
        places: Sequence[int],
        sampling: SamplingSettings,
        tokenizer: Tokenizer,
        on_rollout: OnRollout | None,
    ) -> None:
        self._requests = requests
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._on_rollout = on_rollout
        self.beginnings = [part for place in places for part in self._missing(place)]
        """What is asked for; one request each."""

    def receive(
        self, number: int, index: int, completion: Completion, weight_version: int
    ) -> Rollout:
        """Take what was generated of rollout ``index`` for a request; the rollout with it."""
        request = self._requests[self.beginnings[number].place]
        ids, logprobs = completion.token_ids, completion.logprobs
        seconds = completion.seconds
        segments: tuple[Segment, ...] = (Segment(len(ids), weight_version),)
        if request.partial:
            before = request.partial[index]
            ids = [*before.token_ids.tolist(), *ids]
            logprobs = [*before.logprobs.tolist(), *logprobs]
            seconds, segments = before.seconds + seconds, (*before.segments, *segments)
        reason = completion.finish_reason
        if reason == "length" and len(ids) < self._sampling.max_tokens:
            reason = PARTIAL
        text = self._tokenizer.decode(ids)
        rollout = Rollout(
            group_id=request.group_id,
            index=index,
            token_ids=torch.tensor(ids, dtype=torch.long),
            logprobs=torch.tensor(logprobs, dtype=torch.float32),
            text=text,
            visible=request.prompt.opening + self._without_end(ids, text),
            finish_reason=reason,
            segments=segments,
            seconds=seconds,
        )
        if rollout.is_complete and self._on_rollout is not None:
            self._on_rollout(request.prompt, rollout, self._sampling.n)
        return rollout

    def _without_end(self, ids: Sequence[int], text: str) -> str:
        """The text of a response without the end tokens that close it."""
        count = ending(self._tokenizer, ids)
        return self._tokenizer.decode(ids[: len(ids) - count]) if count else text

    def by_prompt(self, rollouts: Mapping[tuple[int, int], Rollout]) -> Rollouts:
        """Rollouts by :attr:`beginnings` and index -> by request of the generation and index."""
        return {(self.beginnings[i].place, j): rollout for (i, j), rollout in rollouts.items()}

    def _missing(self, place: int) -> Iterator[Beginning]:
        sampling, partial = self._sampling, self._requests[place].partial
        most = sampling.max_tokens if sampling.new_tokens is None else sampling.new_tokens
        if not partial:
            nothing = torch.empty(0, dtype=torch.long)
            yield Beginning(place, range(sampling.n), nothing, min(most, sampling.max_tokens))
            return
        for rollout in partial:
            if not rollout.is_complete:
                left = sampling.max_tokens - len(rollout.token_ids)
                yield Beginning(place, [rollout.index], rollout.token_ids, min(most, left))


def whole_groups(
    requests: Sequence[RolloutRequest],
    n: int,
    shares: Sequence[tuple[Rollouts | None, Mapping[int, InputRecord]]],
) -> list[RolloutGroup]:
    """The groups of a generation, n rollouts each; none where a signal has ended it anywhere.

    Args:
        shares: what each engine has generated (None: it was ended), and what it was given, by
            the number of the request.
    """
    everyone = {(i, old.index): old for i, asked in enumerate(requests) for old in asked.partial}
    inputs: dict[int, InputRecord] = {}
    for rollouts, given in shares:
        if rollouts is None:
            return []
        everyone.update(rollouts)
        inputs.update(given)
    return [
        RolloutGroup(
            asked.group_id, asked.prompt, [everyone[i, j] for j in range(n)], inputs=inputs.get(i)
        )
        for i, asked in enumerate(requests)
    ]


def lengthened(prompt: Prompt, prefix: Tensor) -> Prompt:
    """A prompt with tokens of a response behind it."""
    if not len(prefix):
        return prompt
    positions = prompt.position_ids
    if positions is not None:
        more = int(positions[-1].max()) + 1 + torch.arange(len(prefix))
        more = more if positions.dim() == 1 else more[:, None].expand(-1, positions.shape[1])
        positions = torch.cat([positions, more.to(positions)])
    return replace(
        prompt,
        token_ids=torch.cat([prompt.token_ids, prefix.to(prompt.token_ids)]),
        media_mask=torch.cat([prompt.media_mask, torch.zeros(len(prefix), dtype=torch.bool)]),
        position_ids=positions,
    )
