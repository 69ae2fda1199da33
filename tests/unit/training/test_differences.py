"""Every difference between what the engine was given and what is trained is found and named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.experience.inputs import InputRecord
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.differences import EMBEDDINGS, IDS, POSITIONS, Difference, differences
from megatron_longrl.training.sharding import MicroBatch
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import alone, make_groups, mr_sp

VERSION = 5
"""Of the trainer's weights."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "a prompt for its responses": {},
    "a response a row": {"shared_prompt": False},
    "packed": {"use_sequence_packing": True},
    "rows batched": {"micro_batch_size": 2},
    "MR-SP2": {"context_parallel_size": 2, "mrsp_mode": "full"},
}


def spatial(prompt: Prompt) -> Prompt:
    """With times, heights and widths; text goes on from 40."""
    positions = torch.randint(0, 40, (len(prompt.token_ids), 3))
    positions[-1] = 40
    return dataclasses.replace(prompt, position_ids=positions)


def hash_of(tokens: Tensor) -> Tensor:
    return tokens * 7919


def record_of(prompt: Prompt) -> InputRecord:
    return InputRecord(prompt.token_ids, prompt.positions, hash_of(prompt.token_ids), VERSION)


def some_groups(*, is_spatial: bool = False) -> list[RolloutGroup]:
    groups = make_groups([[3, 7], [1, 2], [5, 5]])
    if not is_spatial:
        return groups
    return [dataclasses.replace(group, prompt=spatial(group.prompt)) for group in groups]


def batches_of(groups: list[RolloutGroup], **changes: Any) -> list[MicroBatch]:
    config = make_config(**changes)
    ranks = (
        [mr_sp(rank, 2) for rank in range(2)] if "context_parallel_size" in changes else [alone()]
    )
    return [batch for r in ranks for batch in rl_batches(groups, config, r)]


def found(batches: list[MicroBatch], records: dict[str, InputRecord]) -> set[Difference]:
    """The first of each kind and prompt over all ranks and rows."""
    firsts: dict[tuple[str, str], Difference] = {}
    for batch in batches:
        for one in differences(batch, records, hash_of(batch.tokens), VERSION):
            key = (one.uid, one.what)
            firsts[key] = min(firsts.get(key, one), one)
    return set(firsts.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_spatial", [False, True])
def test_equal_inputs_pass(layout, is_spatial):
    groups = some_groups(is_spatial=is_spatial)
    records = {group.prompt.uid: record_of(group.prompt) for group in groups}
    assert found(batches_of(groups, **LAYOUTS[layout]), records) == set()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [0, 2, -1])
@pytest.mark.parametrize("number", [0, 1])
def test_each_difference_is_named(layout, place, number):
    groups = some_groups(is_spatial=number == 1)
    uid = groups[number].prompt.uid
    records = {group.prompt.uid: record_of(group.prompt) for group in groups}
    batches = batches_of(groups, **LAYOUTS[layout])
    index = range(len(groups[number].prompt.token_ids))[place]
    for field, what in (
        ("token_ids", IDS),
        ("positions", POSITIONS),
        ("embedding_hashes", EMBEDDINGS),
    ):
        values = getattr(records[uid], field).clone()
        values[(index, 1) if values.dim() > 1 else index] += 1
        spoilt = {uid: dataclasses.replace(records[uid], **{field: values})}
        differing = found(batches, records | spoilt)
        assert Difference(uid, what, index) in differing
        # Another last position moves the responses', which is found in the same place.
        assert {(one.uid, one.what) for one in differing} == {(uid, what)}


def test_an_engine_that_was_given_less():
    groups = some_groups()
    records = {group.prompt.uid: record_of(group.prompt) for group in groups}
    whole = records["p2"]
    fields = (whole.token_ids, whole.positions, whole.embedding_hashes)
    ids, positions, hashes = (values[:-2] for values in fields)
    short = InputRecord(ids, positions, hashes, VERSION)
    kinds = {one.what for one in found(batches_of(groups), records | {"p2": short})}
    assert kinds >= {IDS, POSITIONS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_of_responses_that_begin_anew_defect_2(layout):
    groups = some_groups()
    records = {group.prompt.uid: record_of(group.prompt) for group in groups}
    batches = batches_of(groups, **LAYOUTS[layout])
    for batch in batches:
        later = (batch.response_index >= 0) & (batch.token_index > 0)
        batch.position_ids[later] -= 1
    expected = {Difference(g.prompt.uid, POSITIONS, len(g.prompt.token_ids)) for g in groups}
    assert found(batches, records) == expected


def test_tokens_of_another_response():
    groups = some_groups()
    records = {group.prompt.uid: record_of(group.prompt) for group in groups}
    (batch, *_) = batches_of(groups)
    batch.rollouts = batch.rollouts[::-1]
    assert Difference("p0", IDS, len(groups[0].prompt.token_ids)) in found([batch], records)


@pytest.mark.parametrize("media_change", [False, True])
def test_text_that_older_weights_embedded_is_compared_by_its_ids(media_change):
    """And media only where the encoder has not changed since."""
    groups = some_groups()
    (batch, *_) = batches_of(groups)
    hashes = hash_of(batch.tokens)

    def kinds(**spoilt: Any) -> set[tuple[str, int]]:
        records = {
            group.prompt.uid: dataclasses.replace(
                record_of(group.prompt), weight_version=VERSION - 1
            )
            for group in groups
        }
        records["p0"] = dataclasses.replace(records["p0"], **spoilt)
        told = differences(batch, records, hashes, VERSION, media_change)
        return {(one.what, one.sequence_index) for one in told}

    prompt, text, slot = groups[0].prompt, 0, 1
    batch.media_index[(batch.prompt_index == 0) & (batch.sequence_index == slot)] = 0
    ids, embeddings = prompt.token_ids.clone(), hash_of(prompt.token_ids)
    assert kinds() == set()
    embeddings[text] += 1
    assert kinds(embedding_hashes=embeddings) == set()
    embeddings[slot] += 1
    assert kinds(embedding_hashes=embeddings) == (set() if media_change else {(EMBEDDINGS, slot)})
    ids[text] += 1
    assert kinds(token_ids=ids) == {(IDS, text)}
