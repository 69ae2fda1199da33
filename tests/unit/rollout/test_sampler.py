"""Tokens from logits, against the definition of their distribution."""

from __future__ import annotations

import pytest
import torch

from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.sampler import sample_tokens

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.2, 0.4, -3.0])
DRAWS = 4000


def expected(temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Probabilities, token by token."""
    p = (LOGITS.double() / temperature).softmax(0).tolist()
    order = sorted(range(len(p)), key=lambda token: -p[token])
    order = [token for token in order if p[token] >= min_p * p[order[0]]]
    if top_k > 0:
        order = order[:top_k]
    total, mass, kept = sum(p[token] for token in order), 0.0, []
    for token in order:
        if mass < top_p:
            kept.append(token)
        mass += p[token] / total
    whole = sum(p[token] for token in kept)
    return torch.tensor([p[t] / whole if t in kept else 0.0 for t in range(len(p))])


def draw(settings: SamplingSettings, seeds: range) -> tuple[torch.Tensor, torch.Tensor]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return sample_tokens(LOGITS.expand(len(seeds), -1), settings, generators)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, -1, 1.0, 0.0),
        (0.6, -1, 1.0, 0.0),
        (1.0, 3, 1.0, 0.0),
        (1.0, -1, 0.7, 0.0),
        (1.0, -1, 1.0, 0.2),
        (1.5, 4, 0.8, 0.25),
        (1.0, 1, 0.1, 0.0),
    ],
)
def test_frequencies_and_logprobs(temperature, top_k, top_p, min_p):
    """Truncation changes what is drawn, not the log-probabilities of the policy that is trained."""
    settings = SamplingSettings(
        n=DRAWS, max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    tokens, logprobs = draw(settings, range(DRAWS))
    probabilities = expected(temperature, top_k, top_p, min_p)
    torch.testing.assert_close(logprobs, (LOGITS / temperature).log_softmax(0)[tokens])
    frequencies = torch.bincount(tokens, minlength=len(LOGITS)) / DRAWS
    spread = 4 * (probabilities * (1 - probabilities) / DRAWS).sqrt()
    assert bool(((frequencies - probabilities).abs() <= spread).all())


def test_greedy_reports_the_raw_logits():
    tokens, logprobs = draw(SamplingSettings(n=1, max_tokens=1, temperature=0.0), range(1))
    assert tokens.tolist() == [0]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(0)[:1])


def test_a_response_follows_its_own_seed_only():
    settings = SamplingSettings(n=8, max_tokens=1)
    together, _ = draw(settings, range(8))
    alone = [int(draw(settings, range(seed, seed + 1))[0]) for seed in range(8)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1
