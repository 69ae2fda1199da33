"""The settings of sampling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingSettings:
    """The settings with which responses are sampled.

    The tokens of response j to a prompt depend on (``seed``, ``step``, ``round``, the prompt's uid,
    j) and the weights only: not on the number of ranks, the other prompts, or what was generated
    before.
    """

    n: int
    """Responses per prompt."""
    max_tokens: int
    """Longest response, the end-of-turn token included."""
    stop: bool = True
    """Whether end tokens and stop strings end a response; if not, it continues to ``max_tokens``
    (for measurements)."""
    temperature: float = 1.0
    """0 is greedy (``n`` must be 1)."""
    top_p: float = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: int = -1
    """Sample among this many most likely tokens; -1 is all."""
    min_p: float = 0.0
    """Sample among tokens of at least this part of the most likely token's probability."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response; the token that completes one is the last."""
    seed: int | None = None
    """The run's seed; None draws different responses in every call."""
    step: int = 0
    """Training iteration: gives every step its own random numbers under one ``seed``."""
    round: int = 0
    """Index of the round of generation within the step."""
    new_tokens: int | None = None
    """Most tokens that a response grows by; one that is then not complete is ``partial``."""
