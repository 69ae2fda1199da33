"""The records of rollouts: requests to an engine, its completions, and rewarded groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.experience.inputs import InputRecord

PARTIAL = "partial"
"""Finish reason of a response that continues in a later generation."""


@dataclass(frozen=True)
class EngineStats:
    """Counts of the data that one rank has sent to an engine so far."""

    prompts: int = 0
    """Counted by the first rank of each engine."""
    prompt_bytes: int = 0
    """Bytes of the embeddings that this rank has copied for the engine."""
    weight_updates: int = 0
    cache_resets: int = 0
    """Number of resets of the engine's prefix cache."""

    def plus(self, **more: int) -> EngineStats:
        """Return the counts with some of them increased."""
        return replace(self, **{name: getattr(self, name) + n for name, n in more.items()})


RolloutKey = tuple[str, int]
"""The id of a rollout's group, and the rollout's index within it: unique within a run."""


@dataclass(frozen=True)
class Completion:
    """The tokens that an engine has generated for one request."""

    token_ids: list[int]
    logprobs: list[float]
    """The log-probability of each token, see :attr:`Rollout.logprobs`."""
    finish_reason: str
    """``stop`` (end of turn, or a stop string) or ``length`` (as many tokens as were asked for)."""
    seconds: float
    """The time from the call of the engine until the completion was there."""


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a rollout that one version of the weights has generated.

    Example: a rollout of 700 tokens, the first 512 of which an earlier step has generated, has the
    segments ``(Segment(512, 6), Segment(188, 7))``.
    """

    num_tokens: int
    weight_version: int
    """The number with which the engine has got these weights."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rollout:
    """A response of the policy to a prompt."""

    group_id: str
    """The id of the group of rollouts to the same prompt."""
    index: int
    """The number of the rollout within its group, from 0."""
    token_ids: Tensor
    """long [R]; what ended the response, the end-of-turn token or the one that completes a stop
    string, is the last one."""
    logprobs: Tensor
    """float32 [R]: log-softmax of logits / T at each token, the policy that is trained; greedy: of
    the logits. Top-p, top-k and min-p do not change them: see docs/records.md."""
    text: str
    """The decoded tokens."""
    reward_text: str
    """The text that rewards look at: without the end tokens that close it, behind the tag with
    which the prompt has opened its thought."""
    finish_reason: str
    """``stop`` (end of turn, or a stop string), ``length`` (cut at ``max_tokens``) or ``partial``
    (continues in a later generation)."""
    segments: tuple[Segment, ...]
    """The stretches of tokens by the weights that generated them, oldest first."""
    seconds: float = 0.0
    """The time from the call of the engine until the rollout was complete, over all segments."""

    @property
    def key(self) -> RolloutKey:
        """The rollout's name, by which values of its tokens are found."""
        return self.group_id, self.index

    @property
    def is_complete(self) -> bool:
        """Whether the rollout is complete."""
        return self.finish_reason != PARTIAL

    @property
    def weight_version(self) -> int:
        """The version of the weights that generated the last segment."""
        return self.segments[-1].weight_version


OnRollout = Callable[["Prompt", Rollout, int], None]
"""(prompt, a complete rollout, rollouts per prompt)."""


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """A prompt that an engine is to answer."""

    group_id: str
    """The id that the rollouts to this prompt get."""
    prompt: Prompt
    partial: tuple[Rollout, ...] = ()
    """All rollouts of the group so far, where an earlier generation has left some incomplete; these
    continue."""


def rollout_requests(prompts: Sequence[Prompt], name: str) -> list[RolloutRequest]:
    """A request for each prompt, whose groups are called ``name.0``, ``name.1``, ...

    Args:
        name: the name of the generation; no other one of the run has it.
    """
    return [RolloutRequest(f"{name}.{number}", prompt) for number, prompt in enumerate(prompts)]


@dataclass(frozen=True, eq=False, kw_only=True)
class RewardedRollout(Rollout):
    """A rollout with its rewards."""

    reward: float
    """The weighted sum of all rewards, exact in float32, with the terms that the algorithm has
    added or subtracted; 0 where ``valid`` is False."""
    valid: bool
    """Whether the rollout has a reward, which it lacks where a reward function has failed."""
    correct: float
    """The accuracy; 0 where it could not be computed."""
    reward_terms: Mapping[str, float | None]
    """The score of each reward by its name; None where it could not be computed. Further numbers of
    a user's function are called ``function/number``."""
    unscored: str | None = None
    """The reason why the accuracy could not be computed; None where it was."""

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        *,
        reward: float,
        valid: bool,
        correct: float,
        reward_terms: Mapping[str, float | None],
        unscored: str | None = None,
    ) -> RewardedRollout:
        """A rollout with its reward."""
        return cls(
            **vars(rollout),
            reward=reward,
            valid=valid,
            correct=correct,
            reward_terms=reward_terms,
            unscored=unscored,
        )


@dataclass(frozen=True, eq=False)
class RolloutGroup:
    """A prompt with its n rollouts, as an engine has generated them."""

    group_id: str
    """The name of the group, which no other group of the run has."""
    prompt: Prompt
    rollouts: Sequence[Rollout]
    inputs: InputRecord | None = None
    """The input of the engine for the prompt; None where no engine has generated the rollouts."""

    @property
    def is_complete(self) -> bool:
        """Whether all rollouts are complete."""
        return all(rollout.is_complete for rollout in self.rollouts)


@dataclass(frozen=True, eq=False, kw_only=True)
class RewardedGroup(RolloutGroup):
    """A group whose rollouts have rewards."""

    rollouts: Sequence[RewardedRollout]
    metrics: Mapping[str, float]
    """Means over the group that are reported in addition to the reward and the accuracy."""
    baseline: float | None = None
    """The reward of a greedy rollout, where the algorithm generates one."""

    @classmethod
    def of(
        cls,
        group: RolloutGroup,
        rollouts: Sequence[RewardedRollout],
        metrics: Mapping[str, float],
    ) -> RewardedGroup:
        """A group with the rewards of its rollouts."""
        return cls(
            group_id=group.group_id,
            prompt=group.prompt,
            rollouts=rollouts,
            inputs=group.inputs,
            metrics=metrics,
        )

    @property
    def rewards(self) -> Tensor:
        """float32 [n]: the rewards; 0 where ``valid`` is False."""
        return torch.tensor([rollout.reward for rollout in self.rollouts], dtype=torch.float32)

    @property
    def valid(self) -> Tensor:
        """bool [n]: which rollouts have a reward."""
        return torch.tensor([rollout.valid for rollout in self.rollouts], dtype=torch.bool)

    @property
    def correct(self) -> Tensor:
        """float32 [n]: the accuracy of each rollout."""
        return torch.tensor([rollout.correct for rollout in self.rollouts], dtype=torch.float32)

    @property
    def accuracy(self) -> float:
        """The mean of ``correct``."""
        return float(self.correct.mean())

    @property
    def reward_terms(self) -> dict[str, list[float | None]]:
        """The scores of each reward, one a rollout; None where it could not be computed."""
        names = self.rollouts[0].reward_terms if self.rollouts else {}
        return {name: [rollout.reward_terms[name] for rollout in self.rollouts] for name in names}

    def with_rewards(
        self, rewards: Tensor, valid: Tensor | None = None, **changes: Any
    ) -> RewardedGroup:
        """The group with other rewards.

        Args:
            rewards: float32 [n].
            valid: bool [n]; by default as before.
            changes: new values of other fields of the group.
        """
        known = self.valid if valid is None else valid
        rollouts = [
            replace(rollout, reward=reward, valid=flag)
            for rollout, reward, flag in zip(
                self.rollouts, rewards.tolist(), known.tolist(), strict=True
            )
        ]
        return replace(self, rollouts=rollouts, **changes)
