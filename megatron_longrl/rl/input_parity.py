"""Input parity: the inputs of training are those of the rollout engine, token by token.

Engine and trainer expand a prompt once (:mod:`megatron_longrl.data.prompts`) and then go separate
ways: the engine takes whole prompts, the trainer shards of rows. Before a step computes anything
with the policy, every token of every sample is compared: its id, its position, and a hash of the
embedding that enters the layers. The engine's record is made where the engine is fed, the
trainer's side is what its passes read, by the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.inputs import InputRecord, row_hashes
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.training.differences import (
    EMBEDDINGS,
    IDS,
    POSITIONS,
    Difference,
    differences,
)
from megatron_longrl.training.language_step import placed_embeddings
from megatron_longrl.training.sharding import MicroBatch


@torch.no_grad()
def check_input_parity(
    batches: Sequence[MicroBatch],
    rollout_groups: Sequence[RolloutGroup],
    media: Mapping[str, Tensor],
    gpt: GPTModel,
    pgs: ParallelGroups,
    *,
    weight_version: int,
    media_change: bool = False,
) -> None:
    """Stop where trainer and engine do not read the same; collective over the world.

    Args:
        batches: this rank's shards.
        rollout_groups: the groups of this replica, with the engine's records.
        media: the embeddings of the version of the encoder that the rollouts used.
        weight_version: the version of the trainer's language model. Text that was embedded by an
            older one is compared by its ids alone.
        media_change: whether the encoder is trained. Media are then compared for that version only.

    Raises:
        UserError: on all ranks, naming the prompt, what differs and the first place.
    """
    found: list[Difference] = []
    with raise_on_all_ranks(pgs.gloo_group):
        # Of a prompt that occurs twice, once begun by older weights, the newest.
        by_age = sorted(map(_record, rollout_groups), key=lambda item: item[1].weight_version)
        records = dict(by_age)
        for batch in batches:
            hashes = embedding_hashes(gpt, batch, media) if gpt.pre_process else None
            found += differences(batch, records, hashes, weight_version, media_change)
    everyone = [one for part in gather_objects(pgs.gloo_group, found) for one in part]
    if not everyone:
        return
    order = (IDS, POSITIONS, EMBEDDINGS)
    uids = dict.fromkeys(one.uid for one in everyone)
    uid = next(iter(uids))
    first = min(
        (one for one in everyone if one.uid == uid),
        key=lambda one: (order.index(one.what), one.sequence_index),
    )
    others = f", and {len(uids) - 1} other prompts differ" if len(uids) > 1 else ""
    raise UserError(
        f"prompt {uid}: the trainer's {first.what} are not those that the rollout engine was "
        f"given, from index {first.sequence_index} on{others}: nothing was trained on them. Go on "
        "from the last checkpoint with --rollout-engine megatron to see which side is wrong"
    )


def _record(group: RolloutGroup) -> tuple[str, InputRecord]:
    uid = group.prompt.uid
    if group.inputs is None:
        raise RuntimeError(f"{uid}: the engine has not recorded its inputs")
    return uid, group.inputs


def embedding_hashes(gpt: GPTModel, batch: MicroBatch, media: Mapping[str, Tensor]) -> Tensor:
    """int64 [b, s / cp] on the CPU: of what enters the layers at every token of a shard.

    It runs on the first pipeline stage, and is collective over its TP ranks.
    """
    embeddings, deepstack = placed_embeddings(gpt, batch, media)
    hashes = row_hashes(embeddings.flatten(0, 1)).view(batch.tokens.shape)
    if deepstack is not None:
        slots = deepstack.slots.cpu()
        hashes[slots] = row_hashes(torch.cat(list(deepstack.levels), dim=1), hashes[slots])
    return hashes
