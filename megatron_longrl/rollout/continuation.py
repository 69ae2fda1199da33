"""Responses that go on where an earlier generation has stopped (partial rollouts).

A response that is not complete within ``SamplingSettings.new_tokens`` goes on in a later
generation, with newer weights, from its tokens so far; those keep their log-probabilities (Kimi
k1.5, https://arxiv.org/abs/2501.12599, section 2.6.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_longrl.data.tokenizer import ending
from megatron_longrl.experience.rollouts import PARTIAL, Rollout, RolloutGroup
from megatron_longrl.experience.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.experience.inputs import InputRecord
    from megatron_longrl.experience.rollouts import OnRollout

Begun = Mapping[int, Sequence[Rollout]]
"""Index of a prompt -> all its responses so far."""
Responses = dict[tuple[int, int], Rollout]
"""By prompt and index."""
NOTHING: Begun = MappingProxyType({})


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
        places: of the engine's prompts among all.
        begun: responses to the prompts so far.
        on_rollout: told of complete responses.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        places: Sequence[int],
        begun: Begun,
        sampling: SamplingSettings,
        tokenizer: Tokenizer,
        on_rollout: OnRollout | None,
    ) -> None:
        self._prompts = prompts
        self._begun = begun
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._on_rollout = on_rollout
        self.beginnings = [part for place in places for part in self._missing(place)]
        """What is asked for; one request each."""

    def receive(self, number: int, index: int, part: Rollout) -> Rollout:
        """Take what was generated of response ``index`` for a request; the response with it."""
        place = self.beginnings[number].place
        if place in self._begun:
            before = self._begun[place][index]
            ids = [*before.token_ids.tolist(), *part.token_ids.tolist()]
            part = before.continued(part, self._tokenizer.decode(ids))
        part.visible = self._visible(self._prompts[place], part)
        if part.finish_reason == "length" and len(part.token_ids) < self._sampling.max_tokens:
            part.finish_reason = PARTIAL
        elif self._on_rollout is not None:
            self._on_rollout(self._prompts[place], index, part.visible, self._sampling.n)
        return part

    def _visible(self, prompt: Prompt, response: Rollout) -> str:
        ids = response.token_ids.tolist()
        count = ending(self._tokenizer, ids)
        text = self._tokenizer.decode(ids[: len(ids) - count]) if count else response.text
        return prompt.opening + text

    def by_prompt(self, responses: Mapping[tuple[int, int], Rollout]) -> Responses:
        """Responses by request and index -> by prompt and index."""
        return {(self.beginnings[i].place, j): response for (i, j), response in responses.items()}

    def _missing(self, place: int) -> Iterator[Beginning]:
        sampling = self._sampling
        most = sampling.max_tokens if sampling.new_tokens is None else sampling.new_tokens
        if place not in self._begun:
            nothing = torch.empty(0, dtype=torch.long)
            yield Beginning(place, range(sampling.n), nothing, min(most, sampling.max_tokens))
            return
        for index, response in enumerate(self._begun[place]):
            if not response.is_complete:
                left = sampling.max_tokens - len(response.token_ids)
                yield Beginning(place, [index], response.token_ids, min(most, left))


def whole_groups(
    prompts: Sequence[Prompt],
    n: int,
    begun: Begun,
    shares: Sequence[tuple[Responses | None, Mapping[int, InputRecord]]],
) -> list[RolloutGroup]:
    """The groups of a generation, n responses each; none where a signal has ended it anywhere.

    Args:
        shares: what each engine has generated (None: it was ended), and what it was given, by
            prompt.
    """
    everyone = {(i, j): old for i, before in begun.items() for j, old in enumerate(before)}
    inputs: dict[int, InputRecord] = {}
    for responses, given in shares:
        if responses is None:
            return []
        everyone.update(responses)
        inputs.update(given)
    return [
        RolloutGroup(prompt, [everyone[i, j] for j in range(n)], inputs=inputs.get(i))
        for i, prompt in enumerate(prompts)
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
