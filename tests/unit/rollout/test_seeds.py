"""The seeds of rollouts."""

from __future__ import annotations

import itertools

from megatron_longrl.rollout.seeds import group_seeds

UIDS = [f"clip-{index}" for index in range(40)]


def test_seeds_of_a_run_never_repeat() -> None:
    drawn = [
        seed + response
        for run, step in itertools.product((1, 2, 1234), range(50))
        for seed in group_seeds(run, step, UIDS)
        for response in range(16)
    ]
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) < 2**63  # what SamplingParams takes


def test_responses_of_a_group_differ_in_the_bits_that_torch_uses_on_cpu() -> None:
    for seed in group_seeds(7, 3, UIDS):
        assert len({(seed + response) & 0xFFFFFFFF for response in range(64)}) == 64


def test_a_seed_depends_on_the_prompt_and_not_on_its_neighbours() -> None:
    alone = group_seeds(1, 5, ["b"])
    assert group_seeds(1, 5, ["a", "b", "c"])[1:2] == alone
    assert group_seeds(1, 6, ["b"]) != alone
    assert group_seeds(2, 5, ["b"]) != alone


def test_a_prompt_that_occurs_twice_draws_differently() -> None:
    first, second = group_seeds(1, 0, ["a", "a"])
    assert abs(first - second) > 1000
