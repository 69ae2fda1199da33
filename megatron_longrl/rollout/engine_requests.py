"""The requests of one engine and the rollouts that it generates.

A rollout that is not complete within ``SamplingSettings.new_tokens`` continues in a later
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
    from megatron_longrl.experience.inputs import EngineInput, InputRecord
    from megatron_longrl.experience.rollouts import OnRollout

Rollouts = dict[tuple[int, int], Rollout]
"""The rollouts by the number of the request in the generation, and their index."""


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """Rollouts to one prompt that begin with the same tokens."""

    position: int
    """The place of the request in the list of its engine."""
    number: int
    """The number of the prompt's request in the whole generation."""
    prompt: Prompt
    """The prompt, without the tokens with which the rollouts begin."""
    seed: int
    """Rollout j samples with ``seed + j``."""
    wanted: Sequence[int]
    """The indices of the rollouts."""
    prefix: Tensor
    """Tokens of the rollout so far, long [k]; none, unless the rollout continues an earlier one."""
    max_tokens: int
    """The most tokens to add."""

    @property
    def whole_prompt(self) -> Prompt:
        """Return the prompt followed by the prefix."""
        return lengthened(self.prompt, self.prefix)


class EngineRequests:
    """The requests of one engine, and the rollouts that it has delivered.

    Args:
        requests: the requests of the whole generation.
        numbers: the numbers of the engine's requests among them.
        seeds: the seeds of each request of the whole generation.
        media: key of a medium -> embeddings [tokens, w], see :class:`RolloutEngine`.
        weight_version: the version of the weights that generate.
        on_rollout: called with every complete rollout.
    """

    def __init__(
        self,
        requests: Sequence[RolloutRequest],
        numbers: Sequence[int],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        tokenizer: Tokenizer,
        *,
        media: Mapping[str, Tensor],
        weight_version: int,
        on_rollout: OnRollout | None = None,
    ) -> None:
        self._requests = requests
        self._tokenizer = tokenizer
        self._on_rollout = on_rollout
        self.sampling = sampling
        self.media = media
        self.weight_version = weight_version
        missing = [part for number in numbers for part in self._missing(number, seeds[number])]
        self.requests = [replace(part, position=k) for k, part in enumerate(missing)]
        """The requests; each is generated on its own."""
        self.num_prompts = len(numbers)
        self.rollouts: Rollouts = {}
        """Rollouts that have been delivered."""
        self.inputs: dict[int, InputRecord] = {}
        """The engine's input, by the number of the request in the generation."""

    def deliver(
        self,
        request: EngineRequest,
        index: int,
        completion: Completion,
        weight_version: int | None = None,
    ) -> None:
        """Take what was generated of rollout ``index`` for a request.

        Args:
            weight_version: the version of the weights; by default that of the generation.
        """
        asked = self._requests[request.number]
        version = self.weight_version if weight_version is None else weight_version
        ids, logprobs = completion.token_ids, completion.logprobs
        seconds = completion.seconds
        segments: tuple[Segment, ...] = (Segment(len(ids), version),)
        if asked.partial:
            before = asked.partial[index]
            ids = [*before.token_ids.tolist(), *ids]
            logprobs = [*before.logprobs.tolist(), *logprobs]
            seconds, segments = before.seconds + seconds, (*before.segments, *segments)
        reason = completion.finish_reason
        if reason == "length" and len(ids) < self.sampling.max_tokens:
            reason = PARTIAL
        text = self._tokenizer.decode(ids)
        rollout = Rollout(
            group_id=asked.group_id,
            index=index,
            token_ids=torch.tensor(ids, dtype=torch.long),
            logprobs=torch.tensor(logprobs, dtype=torch.float32),
            text=text,
            reward_text=asked.prompt.opening + self._without_end(ids, text),
            finish_reason=reason,
            segments=segments,
            seconds=seconds,
        )
        self.rollouts[request.number, index] = rollout
        if rollout.is_complete and self._on_rollout is not None:
            self._on_rollout(asked.prompt, rollout, self.sampling.n)

    def is_delivered(self, request: EngineRequest, index: int) -> bool:
        """Whether rollout ``index`` of a request has come."""
        return (request.number, index) in self.rollouts

    def record_input(self, request: EngineRequest, given: EngineInput) -> None:
        """Record the input that the engine got for a request: the trainer compares it with its own
        inputs. The first one of several requests for one prompt counts."""
        if request.number not in self.inputs:
            length = len(request.prompt.token_ids)
            self.inputs[request.number] = given.record(length, self.weight_version)

    def _without_end(self, ids: Sequence[int], text: str) -> str:
        """The text of a response without the end tokens that close it."""
        count = ending(self._tokenizer, ids)
        return self._tokenizer.decode(ids[: len(ids) - count]) if count else text

    def _missing(self, number: int, seed: int) -> Iterator[EngineRequest]:
        """The requests for the rollouts to a prompt that are not complete."""
        sampling, asked = self.sampling, self._requests[number]
        most = sampling.max_tokens if sampling.new_tokens is None else sampling.new_tokens
        if not asked.partial:
            nothing = torch.empty(0, dtype=torch.long)
            tokens = min(most, sampling.max_tokens)
            yield EngineRequest(0, number, asked.prompt, seed, range(sampling.n), nothing, tokens)
            return
        for rollout in asked.partial:
            if not rollout.is_complete:
                tokens = min(most, sampling.max_tokens - len(rollout.token_ids))
                yield EngineRequest(
                    0, number, asked.prompt, seed, [rollout.index], rollout.token_ids, tokens
                )


def whole_groups(
    requests: Sequence[RolloutRequest],
    n: int,
    delivered: Sequence[tuple[Rollouts | None, Mapping[int, InputRecord]]],
) -> list[RolloutGroup]:
    """The groups of a generation, n rollouts each; none where a signal has ended it anywhere.

    Args:
        delivered: the rollouts that each engine has generated (None if it was stopped), and its
            inputs, by the number of the request.
    """
    everyone = {(i, old.index): old for i, asked in enumerate(requests) for old in asked.partial}
    inputs: dict[int, InputRecord] = {}
    for rollouts, given in delivered:
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
    """Return a prompt followed by tokens of a response."""
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
