"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.experience.inputs import InputRecord

OnRollout = Callable[["Prompt", int, str, int], None]
"""(prompt, index of the response, its ``visible`` text, responses per prompt)."""

PARTIAL = "partial"
"""Finish reason of a response that goes on later."""


@dataclass(frozen=True)
class Traffic:
    """What has gone to an engine so far, as one rank counts it."""

    prompts: int = 0
    """Counted by the first rank of each engine."""
    prompt_bytes: int = 0
    """Of embeddings that this rank has copied for the engine."""
    weight_updates: int = 0
    cache_resets: int = 0
    """How often everything computed of prompts was forgotten."""

    def plus(self, **more: int) -> Traffic:
        """With some numbers increased."""
        return replace(self, **{name: getattr(self, name) + n for name, n in more.items()})


@dataclass
class Rollout:
    """One response to a prompt."""

    token_ids: Tensor
    """long [R]; what ended the response, the end-of-turn token or the one that completes a stop
    string, is the last one."""
    logprobs: Tensor
    """float32 [R]: log-softmax of logits / T at each token, the policy that is trained; greedy: of
    the logits. Top-p, top-k and min-p do not change them: see docs/records.md."""
    text: str
    """The decoded tokens."""
    finish_reason: str
    """``stop`` (end of turn, or a stop string), ``length`` (cut at ``max_tokens``) or ``partial``
    (goes on in a later generation)."""
    weight_version: int
    """Version of the weights that produced it, or its last part."""
    earlier: tuple[tuple[int, int], ...] = ()
    """(tokens, version of the weights) of the parts before the last."""
    seconds: float = 0.0
    """From the call of the engine until it was complete, over all its parts."""
    visible: str = ""
    """What rewards look at: the text without the end tokens that close it, behind the tag with
    which the prompt has opened its thought. By default the text."""

    def __post_init__(self) -> None:
        self.visible = self.visible or self.text

    @property
    def is_complete(self) -> bool:
        """Whether it does not go on."""
        return self.finish_reason != PARTIAL

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(tokens, version of the weights) of all parts."""
        before = sum(length for length, _ in self.earlier)
        return (*self.earlier, (len(self.token_ids) - before, self.weight_version))

    def continued(self, by: Rollout, text: str) -> Rollout:
        """With a part that newer weights have produced, and the text of both together."""
        return Rollout(
            token_ids=torch.cat([self.token_ids, by.token_ids]),
            logprobs=torch.cat([self.logprobs, by.logprobs]),
            text=text,
            finish_reason=by.finish_reason,
            weight_version=by.weight_version,
            earlier=self.parts,
            seconds=self.seconds + by.seconds,
        )


@dataclass
class RolloutGroup:
    """A prompt with its responses; what is known of them joins later."""

    prompt: Prompt
    rollouts: list[Rollout]
    rewards: Tensor | None = None
    """float32 [n]; 0 where ``valid`` is False."""
    advantages: Tensor | Sequence[Tensor] | None = None
    """[n], or [tokens] of each response."""
    metrics: dict[str, float] = field(default_factory=dict)
    valid: Tensor | None = None
    """bool [n]: False where a reward could not be computed; None: all have rewards."""
    correct: Tensor | None = None
    """float32 [n]: accuracy of each response; 0 where it could not be computed."""
    components: dict[str, list[float | None]] = field(default_factory=dict)
    """Scores of each reward; None where it could not be computed."""
    baseline: float | None = None
    """Reward of the greedy response, where the advantage asks for it."""
    inputs: InputRecord | None = None
    """What the engine was given for the prompt."""

    @property
    def is_complete(self) -> bool:
        """Whether no response goes on."""
        return all(response.is_complete for response in self.rollouts)

    @property
    def accuracy(self) -> float:
        """Mean of ``correct``."""
        assert self.correct is not None, "rewards tell what is correct"
        return float(self.correct.mean())
