"""Made-up prompts, rollouts and ranks for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup


@dataclass
class FakeGroup:
    """The two answers of a process group that pure tensor code asks for."""

    number: int = 0
    ranks: int = 1

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.ranks


@dataclass
class FakeGroups:
    """Of ParallelGroups only the MR-SP dimension."""

    cp: Any
    alone: Any = field(default_factory=FakeGroup)

    def sharing(self, ranks: int) -> Any:
        return self.cp if ranks > 1 else self.alone


def alone() -> Any:
    """A rank without others."""
    return FakeGroups(FakeGroup())


def mr_sp(rank: int, size: int) -> Any:
    """A rank among those that share a sequence."""
    return FakeGroups(FakeGroup(rank, size))


def make_prompt(name: str, length: int = 4) -> Prompt:
    """A prompt of text; its tokens are its own."""
    return Prompt(
        uid=name,
        token_ids=torch.arange(length) + 10 * (1 + sum(name.encode()) % 50),
        media_mask=torch.zeros(length, dtype=torch.bool),
        videos=(),
        media_lengths=(),
        row=Row(name, f"question {name}", "B", "", (), "general", "text", f"t.jsonl:{name}"),
    )


def make_response(length: int, seed: int, text: str = "", finish_reason: str = "stop") -> Rollout:
    """Random tokens with random log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    return Rollout(
        token_ids=torch.randint(1000, 2000, (length,), generator=generator),
        logprobs=-3 * torch.rand(length, generator=generator),
        text=text,
        finish_reason=finish_reason,
        weight_version=0,
    )


def make_groups(lengths: list[list[int]]) -> list[RolloutGroup]:
    """One group for every list of response lengths; all advantages differ."""
    groups = []
    for number, row in enumerate(lengths):
        responses = [make_response(n, seed=100 * number + k) for k, n in enumerate(row)]
        advantages = (-1.0) ** torch.arange(len(row)) * (
            0.5 + number + 0.1 * torch.arange(len(row))
        )
        groups.append(
            RolloutGroup(make_prompt(f"p{number}", 3 + number), responses, None, advantages)
        )
    return groups


def values_by_token(tokens: Tensor, low: float, high: float) -> Tensor:
    """A pseudo-random number for every token id: the same wherever in a batch the token stands."""
    spread = torch.frac(tokens.double() * 0.6180339887498949)
    return low + (high - low) * spread
