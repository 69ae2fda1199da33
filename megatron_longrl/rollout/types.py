"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.rollout.inputs import InputRecord


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn.

    The tokens of response j to a prompt depend on (``seed``, ``step``, ``round``, the prompt's uid,
    j) and the weights only: not on the number of ranks, the other prompts, or what was generated
    before.
    """

    n: int
    """Responses per prompt."""
    max_tokens: int
    """Longest response, the end-of-turn token included."""
    stop: bool = True
    """False: go on to ``max_tokens``, whatever is drawn (for measurements)."""
    temperature: float = 1.0
    """0 is greedy (``n`` must be 1)."""
    top_p: float = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: int = -1
    """Sample among this many most likely tokens; -1 is all."""
    seed: int | None = None
    """The run's seed; None draws different responses in every call."""
    step: int = 0
    """Training iteration: gives every step its own random numbers under one ``seed``."""
    round: int = 0
    """Of generation within a step: the same for a round."""


@dataclass
class Response:
    """One response to a prompt."""

    token_ids: Tensor
    """long [R]; the end-of-turn token is the last one when the response ended by itself."""
    logprobs: Tensor
    """float32 [R]: log-probability of each token under the distribution it was drawn from. At
    temperature 1 without top-p and top-k this is the log-softmax of the raw logits; at temperature
    T of logits / T; with top-p or top-k of the truncated, renormalised distribution. Greedy: of the
    raw logits."""
    text: str
    """The decoded tokens."""
    finish_reason: str
    """``stop`` (end of turn) or ``length`` (cut at ``max_tokens``)."""
    weight_version: int
    """Version of the weights that produced it."""


@dataclass
class Group:
    """A prompt with its responses; rewards [n] and advantages join later."""

    prompt: Prompt
    responses: list[Response]
    rewards: Tensor | None = None
    advantages: Tensor | Sequence[Tensor] | None = None
    """[n], or [tokens] of each response."""
    metrics: dict[str, float] = field(default_factory=dict)
    valid: Tensor | None = None
    """bool [n]: False where a reward function failed; None: all have rewards."""
    correct: Tensor | None = None
    """float [n]: accuracy of each response."""
    baseline: float | None = None
    """Reward of the greedy response, where the advantage asks for it."""
    inputs: InputRecord | None = None
    """What the engine was given for the prompt."""
