"""Made-up prompts, rollouts and ranks for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.experience.rollouts import (
    RewardedGroup,
    RewardedRollout,
    Rollout,
    RolloutGroup,
    RolloutKey,
    Segment,
)
from megatron_longrl.rl.mini_batches import ForwardResults, MiniBatch, with_targets
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.targets import PolicyMicroBatch
from megatron_longrl.training.token_values import ByRollout, scatter_to_shards


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
    self_group: Any = field(default_factory=FakeGroup)

    def cp_subgroup(self, ranks: int) -> Any:
        return self.cp if ranks > 1 else self.self_group


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
        media=(),
        media_lengths=(),
        row=Row(name, f"question {name}", "B", "", (), "general", "text", f"t.jsonl:{name}"),
    )


def make_rollout(
    length: int,
    seed: int,
    text: str = "",
    finish_reason: str = "stop",
    *,
    group_id: str = "p",
    index: int = 0,
) -> Rollout:
    """Random tokens with random log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    return Rollout(
        group_id=group_id,
        index=index,
        token_ids=torch.randint(1000, 2000, (length,), generator=generator),
        logprobs=-3 * torch.rand(length, generator=generator),
        text=text,
        reward_text=text,
        finish_reason=finish_reason,
        segments=(Segment(length, 0),),
    )


def make_groups(lengths: list[list[int]]) -> list[RolloutGroup]:
    """One group for every list of lengths of rollouts."""
    groups = []
    for number, row in enumerate(lengths):
        name = f"p{number}"
        rollouts = [
            make_rollout(n, seed=100 * number + k, group_id=name, index=k)
            for k, n in enumerate(row)
        ]
        groups.append(RolloutGroup(name, make_prompt(name, 3 + number), rollouts))
    return groups


def make_advantages(groups: Sequence[RolloutGroup]) -> dict[RolloutKey, Tensor]:
    """The same advantage for all tokens of a rollout; those of all rollouts differ."""
    return {
        rollout.key: torch.full((len(rollout.token_ids),), (-1.0) ** k * (0.5 + number + 0.1 * k))
        for number, group in enumerate(groups)
        for k, rollout in enumerate(group.rollouts)
    }


def make_rewarded(
    group: RolloutGroup,
    rewards: Sequence[float],
    correct: Sequence[float] | None = None,
    valid: Sequence[bool] | None = None,
    terms: Mapping[str, Sequence[float | None]] | None = None,
) -> RewardedGroup:
    """A group with its rewards; by default all are valid, and nothing is correct."""
    rollouts = [
        RewardedRollout.of(
            rollout,
            reward=reward,
            valid=valid is None or valid[k],
            correct=0.0 if correct is None else correct[k],
            reward_terms={name: scores[k] for name, scores in (terms or {}).items()},
        )
        for k, (rollout, reward) in enumerate(zip(group.rollouts, rewards, strict=True))
    ]
    return RewardedGroup.of(group, rollouts, {"format": 1.0})


def policy_batches(
    groups: Sequence[RolloutGroup],
    advantages: ByRollout,
    config: Config,
    pgs: Any,
    old: ByRollout | None = None,
    ref: ByRollout | None = None,
) -> list[PolicyMicroBatch]:
    """The micro-batches of a rank with the targets of the policy loss."""

    def shards(values: ByRollout | None) -> list[Tensor] | None:
        return None if values is None else [scatter_to_shards(batch, values) for batch in batches]

    batches = rl_batches(groups, config, pgs)
    results = ForwardResults(shards(old), shards(ref))
    (part,) = with_targets([MiniBatch((), batches)], results, advantages, {})
    return list(part.policy)


def values_by_token(tokens: Tensor, low: float, high: float) -> Tensor:
    """A pseudo-random number for every token id: the same wherever in a batch the token stands."""
    spread = torch.frac(tokens.double() * 0.6180339887498949)
    return low + (high - low) * spread
