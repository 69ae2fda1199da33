"""The statistics of the mismatch, against NumPy and scalar formulas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from megatron_longrl.rl import mismatch
from megatron_longrl.rl.mismatch import mismatch_metrics, mismatch_statistics
from megatron_longrl.training.losses import LOG_RATIO, rl_loss
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import (
    FakeGroup,
    alone,
    make_advantages,
    make_groups,
    policy_batches,
    values_by_token,
)

RANKS = cast(Any, SimpleNamespace(gloo_group=FakeGroup()))


def responses(lengths: list[int], scale: float = 0.3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [scale * torch.randn(length, generator=generator) for length in lengths]


@pytest.mark.parametrize("lengths", [[1], [1, 1], [3, 50, 2], [100] * 7, [101], [1000, 1]])
def test_against_numpy(lengths):
    gaps = responses(lengths)
    metrics = mismatch_statistics(gaps, RANKS)
    tokens = np.concatenate([g.double().numpy() for g in gaps])
    assert metrics["rollout_corr/logprob_diff_mean"] == pytest.approx(
        np.abs(tokens).mean(), rel=1e-12
    )
    assert metrics["rollout_corr/logprob_diff_max"] == pytest.approx(
        np.abs(tokens).max(), rel=1e-12
    )
    assert metrics["rollout_corr/logprob_diff_p99"] == pytest.approx(
        np.quantile(np.abs(tokens), 0.99), rel=1e-9
    )
    weights = {"token": np.exp(tokens), "sequence": np.exp([float(g.double().sum()) for g in gaps])}
    for name, w in weights.items():
        expected = w.sum() ** 2 / (len(w) * (w**2).sum())
        assert metrics[f"rollout_corr/ess_{name}"] == pytest.approx(expected, rel=1e-9)
        assert 0 <= metrics[f"rollout_corr/ess_{name}"] <= 1


def test_ranks_together_are_one(monkeypatch):
    """However the responses lie on ranks, one of which has none."""
    gaps = responses([3, 50, 2, 7, 120])
    whole = mismatch_statistics(gaps, RANKS)
    shares = [gaps[:1], [], gaps[1:]]
    sent: list[list[Any]] = []
    for number in range(2):  # The first exchange gives sums, the second the largest values.
        found: list[Any] = []
        for share in shares:
            calls: list[Any] = []

            def exchange(group, value, calls=calls, number=number, found=found):
                calls.append(value)
                if len(calls) == number + 1:
                    found.append(value)
                    raise StopIteration
                return sent[len(calls) - 1]

            monkeypatch.setattr(mismatch, "gather_objects", exchange)
            with pytest.raises(StopIteration):
                mismatch_statistics(share, RANKS)
        sent.append(found)
    exchanges = iter(sent)
    monkeypatch.setattr(mismatch, "gather_objects", lambda group, value: next(exchanges))
    assert mismatch_statistics(shares[1], RANKS) == pytest.approx(whole, rel=1e-12)
    count = sum(map(len, gaps))
    assert max(map(len, sent[1])) <= 0.01 * count + 2, "more than the largest values was sent"


def test_engines_that_agree_have_whole_samples_and_one_that_does_not_has_few():
    agreeing = mismatch_statistics([torch.zeros(5), torch.zeros(2)], RANKS)
    assert agreeing == {
        **dict.fromkeys(
            (
                "rollout_corr/logprob_diff_mean",
                "rollout_corr/logprob_diff_p99",
                "rollout_corr/logprob_diff_max",
            ),
            0.0,
        ),
        **dict.fromkeys(("rollout_corr/ess_token", "rollout_corr/ess_sequence"), 1.0),
    }
    apart = mismatch_statistics([torch.full((50,), 0.5), torch.zeros(50)], RANKS)
    assert apart["rollout_corr/ess_sequence"] == pytest.approx(0.5, abs=1e-6)
    assert apart["rollout_corr/ess_token"] > 0.9


def test_nothing_trained_has_no_gap():
    assert mismatch_statistics([], RANKS) == {}


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_the_loss_hands_over_every_token(shared_prompt, size):
    config = make_config(shared_prompt=shared_prompt, micro_batch_size=size)
    groups = make_groups([[3, 7], [1, 2], [5, 5]])
    ranks = alone()
    ranks.is_last_stage = True
    ranks.tp = ranks.gloo_group = FakeGroup()
    batches = policy_batches(groups, make_advantages(groups), config, ranks)
    log_ratios = []
    for batch in batches:
        logprobs = values_by_token(batch.labels[batch.selected], -3.0, 0.0)
        _, _, report = rl_loss(config.algorithm, config.rollout)(
            batch, logprobs, torch.zeros_like(logprobs)
        )
        log_ratios.append(report.per_token[LOG_RATIO])
    gaps = [
        values_by_token(r.token_ids, -3.0, 0.0).float() - r.logprobs
        for group in groups
        for r in group.rollouts
    ]
    expected = mismatch_statistics(gaps, RANKS)
    assert mismatch_metrics(batches, log_ratios, groups, ranks) == pytest.approx(expected, rel=1e-5)
