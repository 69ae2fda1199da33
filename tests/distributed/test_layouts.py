"""Further ways to run a step that leave loss and gradients those of the one-process twin."""

import pytest

from megatron_longrl.parallel.attention import mask
from megatron_longrl.planner.packing import split_group
from megatron_longrl.planner.stages import plan_sequences
from megatron_longrl.training import batches
from tests.distributed.cases import CP2, EXCHANGES, PP2, SP, TP2, TWO_RANKS, exchanged
from tests.distributed.layouts import (
    RESPONSES,
    TOLERANCE,
    check,
    longest_prompt,
    sft_losses,
    tiny_config,
)
from tests.runner.tiers import full_only

HERE = "tests/distributed/test_layouts.py::"


def named(layouts):
    """Layouts as parameters with their names."""
    return [pytest.param(fields, id=name) for name, fields in layouts.items()]


@pytest.mark.parametrize(
    "layout",
    full_only(
        f"{HERE}test_long_rows_in_blocks",
        named(exchanged(TWO_RANKS)),
        [f"MR-SP2 {exchange}" for exchange in EXCHANGES],
    ),
)
def test_long_rows_in_blocks(tiny_data, layout, monkeypatch):
    """Coordinates instead of a dense mask, through recomputation and two rows a micro-batch."""
    monkeypatch.setattr(mask, "MAX_DENSE_KEYS", 0)
    check(tiny_data, **layout, micro_batch_size=2, recompute_granularity="full")


@pytest.mark.parametrize(
    "layout",
    full_only(
        f"{HERE}test_two_rows_in_a_micro_batch",
        named(TWO_RANKS),
        ["TP2 with sequence parallelism", "DP2"],
    ),
)
def test_two_rows_in_a_micro_batch(tiny_data, layout):
    check(tiny_data, **layout, micro_batch_size=2)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_packed_rows_in_blocks(tiny_data, exchange, monkeypatch):
    monkeypatch.setattr(mask, "MAX_DENSE_KEYS", 0)
    check(tiny_data, **CP2, cp_comm_type=exchange, use_sequence_packing=True)


@pytest.mark.parametrize("layout", [CP2, PP2], ids=["MR-SP2", "PP2"])
def test_groups_in_several_rows(tiny_data, layout):
    """Room for the longest prompt and one of its two responses, which have 3 and 11 tokens."""
    longest = longest_prompt(tiny_data)
    assert split_group(longest, RESPONSES[0], longest + 11) == [[0], [1]]
    check(tiny_data, **layout, seq_length=longest + 11, rollout_max_tokens=11)


def test_the_policy_is_the_distribution_that_rollouts_are_drawn_from(tiny_data):
    check(tiny_data, **TP2, rollout_temperature=0.6)


SFT = {
    f"{name}, {'packed' if packed else 'a row each'}": (layout, packed)
    for name, layout in (("TP2", TP2), ("MR-SP2", CP2), ("PP2", PP2))
    for packed in (False, True)
}


@pytest.mark.parametrize(
    ("layout", "packed"),
    full_only(
        f"{HERE}test_sft_is_at_temperature_one_whatever_rollouts_are",
        [pytest.param(*case, id=name) for name, case in SFT.items()],
        ["TP2, a row each", "MR-SP2, packed", "PP2, packed"],
    ),
)
def test_sft_is_at_temperature_one_whatever_rollouts_are(tiny_data, layout, packed):
    config = tiny_config(tiny_data, **layout, rollout_temperature=0.6, use_sequence_packing=packed)
    ours, theirs = sft_losses(config)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)


@pytest.mark.parametrize("layout", [TP2, TP2 | SP], ids=["TP2", "TP2 with sequence parallelism"])
def test_more_ranks_than_key_and_value_heads(tiny_data, layout):
    """core gives both ranks the only head."""
    check(tiny_data, **layout, num_query_groups=1)


def test_untied_embeddings(tiny_data):
    check(tiny_data, **PP2, untie_embeddings_and_output_weights=True)


def test_recomputed_activations(tiny_data):
    check(tiny_data, **CP2, recompute_granularity="full")


@pytest.mark.parametrize(
    ("mode", "shared_prompt"),
    full_only(
        f"{HERE}test_every_mode_is_exact",
        [
            pytest.param(mode, shared, id=f"{mode}, {'shared' if shared else 'not shared'}")
            for mode in ("auto", "none", "encode")
            for shared in (True, False)
        ],
        ["auto, shared", "none, not shared", "encode, shared"],
    ),
)
def test_every_mode_is_exact(tiny_data, mode, shared_prompt):
    check(tiny_data, **CP2, shared_prompt=shared_prompt, mrsp_mode=mode)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_long_rows_shared_and_short_ones_dealt_in_one_step(tiny_data, exchange, monkeypatch):
    # Room for short rows only on a rank by itself.
    monkeypatch.setattr(batches, "plan_sequences", plan_sequences_within_100_tokens)
    options = {"mrsp_mode": "auto", "recompute_granularity": "full"}
    check(tiny_data, **CP2, cp_comm_type=exchange, **options)


def plan_sequences_within_100_tokens(*arguments, **keywords):
    plan = plan_sequences(*arguments, **keywords | {"most_tokens": 100})
    assert any(plan.sequences[2]) and all(plan.sequences[1]), plan
    return plan
