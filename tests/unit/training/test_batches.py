"""What a step's micro-batches hold, whatever their size and order."""

from __future__ import annotations

import pytest
import torch

from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup
from megatron_longrl.training import batches as batches_module
from megatron_longrl.training.batches import rl_batches, sft_batches
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.token_values import scatter_to_shards
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import alone, make_groups, make_prompt, make_rollout, mr_sp

LENGTHS = [[3, 7], [1, 2], [5, 5], [8, 1]]


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_token_keeps_its_own_values_defect_1(shared_prompt, size):
    config = make_config(shared_prompt=shared_prompt, micro_batch_size=size)
    groups = make_groups(LENGTHS)
    batches = rl_batches(groups, config, alone())
    rows = 4 if shared_prompt else 8
    assert [len(batch.tokens) for batch in batches] == [
        min(size, rows - start) for start in range(0, rows, size)
    ]
    assert values_in(batches) == values_of(groups)


def values_in(batches: list[MicroBatch]) -> list[tuple[float, ...]]:
    """(token, advantage, log-probability) of every predicted token, sorted."""
    found = []
    for batch in batches:
        advantages = {r.key: advantage_of(r) for r in batch.rollouts}
        logprobs = {r.key: r.logprobs for r in batch.rollouts}
        fields = (
            batch.labels,
            scatter_to_shards(batch, advantages),
            scatter_to_shards(batch, logprobs),
        )
        found += list(zip(*(field[batch.selected].tolist() for field in fields), strict=True))
        for field in fields[1:]:
            assert field[~batch.selected].abs().sum() == 0
    return sorted(found)


def values_of(groups: list[RolloutGroup]) -> list[tuple[float, ...]]:
    """The same from the rollouts."""
    expected: list[tuple[float, ...]] = []
    for group in groups:
        for rollout in group.rollouts:
            values = (rollout.token_ids, advantage_of(rollout), rollout.logprobs)
            expected += list(zip(*(value.tolist() for value in values), strict=True))
    return sorted(expected)


def advantage_of(rollout: Rollout) -> torch.Tensor:
    """[tokens]: another value for every rollout of the made-up groups."""
    number = 10 * int(rollout.group_id.removeprefix("p")) + rollout.index
    return torch.full((len(rollout.token_ids),), number + 0.5)


def test_rows_of_like_lengths_share_a_micro_batch():
    groups = make_groups([[9, 9], [1, 1], [9, 8], [2, 1]])
    batches = rl_batches(groups, make_config(micro_batch_size=2), alone())
    assert [batch.uids for batch in batches] == [("p2", "p0"), ("p3", "p1")]
    assert batches[1].tokens.shape[1] < batches[0].tokens.shape[1]
    assert values_in(batches) == values_of(groups)


def test_a_group_takes_as_few_rows_as_hold_its_responses():
    """A prompt of 3 tokens (2 and one in front of each response), rows of 12."""
    groups = make_groups([[4, 7, 3, 6]])
    batches = rl_batches(groups, make_config(seq_length=12), alone())
    assert [int(batch.selected.sum()) for batch in batches] == [10, 10]
    assert sorted(values_in(batches)) == sorted(values_of(groups))
    (whole,) = rl_batches(groups, make_config(seq_length=22), alone())
    assert int(whole.selected.sum()) == 20


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_packed_rows_hold_the_same_tokens_and_nothing_sees_a_neighbour(shared_prompt):
    config = make_config(use_sequence_packing=True, shared_prompt=shared_prompt, seq_length=24)
    groups = make_groups(LENGTHS)
    packed = rl_batches(groups, config, alone())
    apart = rl_batches(groups, config.replace(use_sequence_packing=False), alone())
    assert len(packed) < len(apart)
    assert sorted(values_in(packed)) == sorted(values_in(apart)) == sorted(values_of(groups))
    assert sorted(contexts(packed)) == sorted(contexts(apart))


def contexts(batches: list[MicroBatch]) -> list[list[tuple[int, int]]]:
    """For every predicted token the (token, position) pairs that it sees."""
    found = []
    for batch in batches:
        assert batch.attention_mask is not None
        for b, q in batch.selected.nonzero().tolist():
            seen = batch.attention_mask[b, 0, q]
            tokens, positions = batch.tokens[b, seen], batch.position_ids[b, seen]
            found.append(list(zip(tokens.tolist(), positions.tolist(), strict=True)))
    return found


def test_packed_sft_rows_fill_up():
    prompts = [make_prompt(f"p{k}", 3 + k) for k in range(4)]
    responses = [make_rollout(n, seed=n).token_ids.tolist() for n in (2, 9, 5, 3)]
    config = make_config(use_sequence_packing=True, seq_length=20)
    batches = sft_batches(prompts, responses, config, alone())
    assert [int((batch.loss_mask > 0).sum()) for batch in batches] == [7, 12]


def test_a_shared_prompt_stands_in_its_row_once():
    (group,) = make_groups([[3, 7]])
    prompt = group.prompt.token_ids.tolist()
    (shared,) = rl_batches([group], make_config(), alone())
    apart = rl_batches([group], make_config(shared_prompt=False), alone())
    assert shared.tokens[0, : len(prompt)].tolist() == prompt
    assert (shared.tokens == prompt[0]).sum() == 1
    assert sum(int((batch.tokens == prompt[0]).sum()) for batch in apart) == 2


def test_sft_has_one_row_per_prompt():
    prompts = [make_prompt(f"p{k}", 3 + k) for k in range(3)]
    responses = [make_rollout(n, seed=n).token_ids.tolist() for n in (2, 9, 5)]
    batches = sft_batches(prompts, responses, make_config(micro_batch_size=2), alone())
    assert [len(batch.tokens) for batch in batches] == [2, 1]
    predicted = [
        row[chosen].tolist()
        for batch in batches
        for row, chosen in zip(batch.labels, batch.selected, strict=True)
    ]
    assert predicted == responses
    assert all(batch.rollouts == () for batch in batches)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context_parallel_size": 2},
        {"tensor_model_parallel_size": 3, "sequence_parallel": True},
        {"context_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True},
    ],
)
def test_a_replica_without_samples_joins_with_padding_defect_10(changes):
    config = make_config(**changes)
    for rank in range(config.parallel.context_parallel_size):
        ranks = mr_sp(rank, config.parallel.context_parallel_size)
        for batches in (rl_batches([], config, ranks), sft_batches([], [], config, ranks)):
            (batch,) = batches
            assert not batch.selected.any()
            assert batch.media_keys == ()
            assert batch.response_lengths.tolist() == []
            assert batch.attention_mask is not None
            # Every padding token sees one key, so that no softmax is empty.
            assert (batch.attention_mask.sum(dim=-1) == 1).all()
            # What reaches a TP rank under sequence parallelism is equally long everywhere.
            tensor = (
                config.parallel.tensor_model_parallel_size
                if config.parallel.sequence_parallel
                else 1
            )
            assert batch.tokens.shape[1] % tensor == 0


def test_transformer_engine_is_told_of_shared_and_of_whole_rows():
    config = make_config(
        transformer_impl="transformer_engine",
        shared_prompt=False,
        context_parallel_size=2,
        bf16=True,
    )
    ranks = mr_sp(0, 2)
    for mode, group in (("full", ranks.cp), ("encode", ranks.self_group)):
        batches = rl_batches(make_groups(LENGTHS), config.replace(mrsp_mode=mode), ranks)
        assert len(batches) == (8 if mode == "full" else 4)
        for batch in batches:
            assert batch.sequence_group is group
            assert batch.attention_mask is None
    (padding,) = rl_batches([], config, ranks)
    assert padding.sequence_group is ranks.self_group


def test_a_row_that_is_too_long_names_its_prompt():
    with pytest.raises(UserError, match=r"p0.*--seq-length 8"):
        rl_batches(make_groups([[3, 7]]), make_config(seq_length=8), alone())


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 3),  # forward, and a backward that costs two
        ({"grpo_kl_beta": 0.1}, 4),
        ({"grpo_kl_beta": 0.1, "grpo_iterations": 2}, 8),
    ],
)
def test_a_plan_counts_all_passes_over_a_row(changes, passes, monkeypatch):
    """The reference's pass, and that of the old log-probabilities, take a rank's time as well."""
    asked = []
    plan = batches_module.plan_sequences

    def note(*arguments, **named):
        asked.append(named["passes"])
        return plan(*arguments, **named)

    monkeypatch.setattr(batches_module, "plan_sequences", note)
    rl_batches(make_groups(LENGTHS), make_config(**changes), alone())
    assert asked == [passes]
