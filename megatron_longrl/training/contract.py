"""The parity contract: the policy is trained on what the rollout engine was given, token by token.

Engine and trainer expand a prompt once (:mod:`megatron_longrl.data.prompts`) and then go separate
ways: the engine takes whole prompts, the trainer shards of rows. Before a step computes anything
with the policy, every token of every sample is compared: its id, its position, and a hash of the
embedding that enters the layers. The engine's record is made where the engine is fed, the
trainer's side is what its passes read, by the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.rollout.inputs import InputRecord, row_hashes
from megatron_longrl.rollout.types import Group
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.step import placed_embeddings

IDS, POSITIONS, EMBEDDINGS = "token ids", "positions", "embeddings"


class Difference(NamedTuple):
    """Where a sample differs first."""

    uid: str
    what: str
    place: int
    """In the prompt followed by the response."""


@torch.no_grad()
def check_inputs(
    batches: Sequence[MicroBatch],
    groups: Sequence[Group],
    media: Mapping[str, Tensor],
    gpt: GPTModel,
    ranks: ParallelGroups,
    *,
    weight_version: int,
    media_change: bool = False,
) -> None:
    """Stop where trainer and engine do not read the same; collective over the world.

    Args:
        batches: this rank's shards.
        groups: of this replica, with the engine's records.
        media: the embeddings of the version of the encoder that the rollouts used.
        weight_version: of the trainer's language model. Text that was embedded by an older one is
            compared by its ids alone.
        media_change: whether the encoder is trained. Media are then compared for that version only.

    Raises:
        UserError: on all ranks, naming the prompt, what differs and the first place.
    """
    found: list[Difference] = []
    with together(ranks.control):
        # Of a prompt that occurs twice, once begun by older weights, the newest.
        by_age = sorted(map(_record, groups), key=lambda told: told[1].weight_version)
        records = dict(by_age)
        for batch in batches:
            hashes = embedding_hashes(gpt, batch, media) if gpt.pre_process else None
            found += differences(batch, records, hashes, weight_version, media_change)
    everyone = [one for part in gather_objects(ranks.control, found) for one in part]
    if not everyone:
        return
    order = (IDS, POSITIONS, EMBEDDINGS)
    uids = dict.fromkeys(one.uid for one in everyone)
    uid = next(iter(uids))
    first = min(
        (one for one in everyone if one.uid == uid),
        key=lambda one: (order.index(one.what), one.place),
    )
    others = f", and {len(uids) - 1} other prompts differ" if len(uids) > 1 else ""
    raise UserError(
        f"prompt {uid}: the trainer's {first.what} are not those that the rollout engine was "
        f"given, from index {first.place} on{others}: nothing was trained on them. Go on from the "
        "last checkpoint with --rollout-engine megatron to see which side is wrong"
    )


def _record(group: Group) -> tuple[str, InputRecord]:
    uid = group.prompt.uid
    if group.inputs is None:
        raise RuntimeError(f"{uid}: the engine has not told what it was given")
    return uid, group.inputs


def embedding_hashes(gpt: GPTModel, batch: MicroBatch, media: Mapping[str, Tensor]) -> Tensor:
    """int64 [b, s / cp] on the CPU: of what enters the layers at every token of a shard.

    On the first pipeline stage; collective over its TP ranks.
    """
    embeddings, deepstack = placed_embeddings(gpt, batch, media)
    hashes = row_hashes(embeddings.flatten(0, 1)).view(batch.tokens.shape)
    if deepstack is not None:
        slots = deepstack.slots.cpu()
        hashes[slots] = row_hashes(torch.cat(list(deepstack.levels), dim=1), hashes[slots])
    return hashes


def differences(
    batch: MicroBatch,
    records: Mapping[str, InputRecord],
    hashes: Tensor | None,
    weight_version: int,
    media_change: bool = False,
) -> Iterator[Difference]:
    """The first difference of each kind in every sample of a shard.

    Args:
        records: of the engine, by the prompt's uid.
        hashes: see :func:`embedding_hashes`; None where another stage compares them.
        weight_version, media_change: see :func:`check_inputs`.
    """
    is_media = batch.media_index.cpu() >= 0
    prompt_index, response_index = batch.prompt_index.cpu(), batch.response_index.cpu()
    tokens, positions, place = (
        field.cpu() for field in (batch.tokens, batch.position_ids, batch.place)
    )
    for k, uid in enumerate(batch.uids):
        record = records[uid]
        prompt = prompt_index == k
        for j in response_index[prompt].unique().tolist():
            here = prompt & (response_index == j)
            ids, expected = record.token_ids, record.positions
            if j >= 0:
                answer = batch.responses[j].token_ids
                steps = record.next_position + torch.arange(len(answer))
                ids = torch.cat([ids, answer])
                expected = torch.cat([expected, _like(steps, expected)])
            compared = [(IDS, tokens, ids, here), (POSITIONS, positions, expected, here)]
            is_new = record.weight_version == weight_version
            if hashes is not None and (is_new or not media_change):
                # Those of responses are the engine's own.
                given = here & (place < len(record.token_ids))
                given &= is_media | is_new
                compared.append((EMBEDDINGS, hashes, record.embedding_hashes, given))
            for what, ours, theirs, where in compared:
                index = _first(ours[where], theirs, place[where])
                if index is not None:
                    yield Difference(uid, what, index)


def _like(positions: Tensor, others: Tensor) -> Tensor:
    """[n] -> [n], or [n, 3] where the others have time, height and width."""
    return positions if others.dim() == 1 else positions[:, None].expand(-1, others.shape[1])


def _first(ours: Tensor, theirs: Tensor, place: Tensor) -> int | None:
    """The smallest place at which values differ, or None.

    Args:
        ours: [t] or [t, 3], of the tokens at ``place`` [t].
        theirs: [P] or [P, 3], of all places.
    """
    if ours.dim() > theirs.dim():
        theirs = _like(theirs, ours)
    expected = theirs[place.clamp(max=len(theirs) - 1)]
    if expected.dim() > ours.dim():
        ours = _like(ours, expected)
    differs = (ours != expected).flatten(1).any(dim=1) if ours.dim() > 1 else ours != expected
    differs |= place >= len(theirs)
    return int(place[differs].min()) if bool(differs.any()) else None
