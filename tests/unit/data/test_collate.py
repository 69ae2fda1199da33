"""Shared-prompt rows against a slow twin that writes one token after the other."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from megatron_longrl.data.collate import (
    Batch,
    collate,
)
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.parallel.attention.tree_mask import token_coordinates, tree_mask

MEDIA_ID = 9
VIEW = PreprocessSpec(32, 32, (0.5,) * 3, (0.5,) * 3)


def make_prompt(generator: random.Random, name: str, videos: list[tuple[str, int]]) -> Prompt:
    """Text, then per (content, frames) two slots and a newline for every frame, then text."""
    ids, mask = [generator.randrange(10, 99)], [False]
    specs, lengths = [], []
    for content, frames in videos:
        ids += [MEDIA_ID, MEDIA_ID, 1] * frames
        mask += [True, True, False] * frames
        specs.append(VideoSpec(f"{content}.webm", content, tuple(range(frames)), VIEW))
        lengths.append(2 * frames)
    text = [generator.randrange(10, 99) for _ in range(generator.randrange(1, 5))]
    return Prompt(
        uid=name,
        token_ids=torch.tensor(ids + text),
        media_mask=torch.tensor(mask + [False] * len(text)),
        media=tuple(specs),
        media_lengths=tuple(lengths),
        row=Row(name, "question", "A", "", (), "general", "video", f"t.jsonl:{name}"),
    )


def make_batch(seed: int) -> tuple[list[Prompt], list[list[list[int]]]]:
    """Several videos, shared videos, no videos; different numbers and lengths of responses."""
    generator = random.Random(seed)
    choices = [[("x", 3)], [("y", 1)], [("x", 3), ("z", 2)], [], [("x", 2)], [("x", 3)]]
    prompts = [make_prompt(generator, f"p{k}", videos) for k, videos in enumerate(choices)]
    generator.shuffle(prompts)
    responses = [
        [
            [generator.randrange(10, 99) for _ in range(generator.randrange(1, 6))]
            for _ in range(generator.randrange(1, 4))
        ]
        for _ in prompts
    ]
    return prompts, responses


def slow_row(prompt: Prompt, responses: list[list[int]], first_media: dict[str, int]) -> list[dict]:
    """Every token of a row with all that belongs to it."""
    slots: list[int] = []
    for video, length in zip(prompt.media, prompt.media_lengths, strict=True):
        slots += range(first_media[video.key()], first_media[video.key()] + length)
    row = []
    ids, mask = prompt.token_ids.tolist(), prompt.media_mask.tolist()
    for position, (token, is_media) in enumerate(zip(ids[:-1], mask[:-1], strict=True)):
        media = slots.pop(0) if is_media else -1
        row.append({"token": token, "position": position, "branch": 0, "media": media})
    assert not slots
    for branch, response in enumerate(responses, start=1):
        inputs = [ids[-1], *response[:-1]]
        for offset, (token, label) in enumerate(zip(inputs, response, strict=True)):
            position = len(ids) - 1 + offset
            row.append(
                {
                    "token": token,
                    "position": position,
                    "branch": branch,
                    "media": -1,
                    "label": label,
                }
            )
    return row


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("multiple", [1, 8])
def test_rows_equal_the_slow_twin(seed: int, multiple: int) -> None:
    prompts, responses = make_batch(seed)
    batch = collate(prompts, responses, multiple, 200)
    first_media: dict[str, int] = {}
    total = 0
    for prompt in prompts:
        for video, length in zip(prompt.media, prompt.media_lengths, strict=True):
            if video.key() not in first_media:
                first_media[video.key()] = total
                total += length
    assert batch.media_keys == list(first_media)
    assert batch.uids == [prompt.uid for prompt in prompts]

    rows = [slow_row(p, r, first_media) for p, r in zip(prompts, responses, strict=True)]
    longest = max(len(row) for row in rows)
    assert batch.tokens.shape == (len(rows), -(-longest // multiple) * multiple)
    count = 0
    for b, row in enumerate(rows):
        last_branch = 0
        for s in range(batch.tokens.shape[1]):
            token = row[s] if s < len(row) else None
            branch = token["branch"] if token else -1
            assert batch.branch_ids[b, s] == branch
            if token is None:
                assert batch.media_index[b, s] == batch.response_index[b, s] == -1
                assert batch.loss_mask[b, s] == batch.tokens[b, s] == 0
                continue
            if branch > last_branch:
                last_branch, count = branch, count + 1
            assert batch.tokens[b, s] == token["token"]
            assert batch.position_ids[b, s] == token["position"]
            assert batch.media_index[b, s] == token["media"]
            assert batch.loss_mask[b, s] == float("label" in token)
            assert batch.response_index[b, s] == (count - 1 if "label" in token else -1)
            if "label" in token:
                assert batch.labels[b, s] == token["label"]
    assert count == sum(len(row) for row in responses)


def test_a_row_by_hand() -> None:
    """Prompt 20 30 40 and responses (5 6) and (7): every branch opens with 40 at position 2."""
    prompt = replace(
        make_prompt(random.Random(0), "p", []),
        token_ids=torch.tensor([20, 30, 40]),
        media_mask=torch.tensor([False, False, False]),
    )
    batch = collate([prompt], [[[5, 6], [7]]], 4, 100)
    assert batch.tokens.tolist() == [[20, 30, 40, 5, 40, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 0, 0]]
    assert batch.branch_ids.tolist() == [[0, 0, 1, 1, 2, -1, -1, -1]]
    assert batch.labels.tolist()[0][2:5] == [5, 6, 7]
    assert batch.loss_mask.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]
    assert batch.response_index.tolist() == [[-1, -1, 0, 0, 1, -1, -1, -1]]


def test_positions_of_responses_go_on_from_the_prompt_in_every_batch() -> None:
    """They start at P-1 whatever the other rows' lengths and the padding are."""
    prompts, responses = make_batch(1)
    together = collate(prompts, responses, 16, 200)
    for b, (prompt, row) in enumerate(zip(prompts, responses, strict=True)):
        alone = collate([prompt], [row], 1, 200)
        length = alone.tokens.shape[1]
        assert torch.equal(together.position_ids[b, :length], alone.position_ids[0])
        first = (
            together.response_index[b]
            .tolist()
            .index(min(i for i in together.response_index[b].tolist() if i >= 0))
        )
        assert together.position_ids[b, first] == len(prompt.token_ids) - 1


def test_media_of_a_row_are_those_of_its_prompt_in_any_order_of_rows() -> None:
    """Reordering samples, or batching several, never hands a row the frames of another."""
    prompts, responses = make_batch(2)
    for order in (range(6), [5, 2, 0, 4, 1, 3]):
        batch = collate([prompts[k] for k in order], [responses[k] for k in order], 1, 200)
        frames = {
            v.key(): n for p in prompts for v, n in zip(p.media, p.media_lengths, strict=True)
        }
        owner = [(key, k) for key in batch.media_keys for k in range(frames[key])]
        for b, number in enumerate(order):
            prompt = prompts[number]
            assert batch.uids[b] == prompt.uid
            seen = [owner[i] for i in batch.media_index[b].tolist() if i >= 0]
            assert seen == [
                (video.key(), k)
                for video, length in zip(prompt.media, prompt.media_lengths, strict=True)
                for k in range(length)
            ]


def slow_allowed(batch: Batch, b: int, query: int, key: int) -> bool:
    """Follow the branch of the query back to the prompt, token by token."""
    branches = batch.branch_ids[b].tolist()
    if branches[query] == -1:
        return query == key
    path = [k for k in range(query + 1) if branches[k] in (0, branches[query])]
    return key in path


@pytest.mark.parametrize("seed", range(3))
def test_attention_equals_the_slow_twin(seed: int) -> None:
    prompts, responses = make_batch(seed)
    batch = collate(prompts, responses, 8, 200)
    coordinates = token_coordinates(batch.branch_ids)
    allowed = tree_mask(coordinates, coordinates)
    length = batch.tokens.shape[1]
    assert allowed.dtype == torch.bool
    for b in range(len(prompts)):
        expected = [[slow_allowed(batch, b, q, k) for k in range(length)] for q in range(length)]
        assert allowed[b].tolist() == expected
    assert allowed.any(dim=-1).all()


def test_a_response_sees_what_it_would_see_alone() -> None:
    """Tokens and positions that a branch attends to are those of prompt + response alone."""
    prompts, responses = make_batch(4)
    batch = collate(prompts, responses, 8, 200)
    coordinates = token_coordinates(batch.branch_ids)
    allowed = tree_mask(coordinates, coordinates)
    for b, (prompt, row) in enumerate(zip(prompts, responses, strict=True)):
        for span, response in zip(batch.spans[b], row, strict=True):
            seen = allowed[b, span.stop - 1]
            alone = prompt.token_ids.tolist() + response[:-1]
            assert batch.tokens[b][seen].tolist() == alone
            assert batch.position_ids[b][seen].tolist() == list(range(len(alone)))


def test_every_predicted_token_knows_its_response_and_its_place() -> None:
    prompts, responses = make_batch(3)
    batch = collate(prompts, responses, 8, 200)
    flat = [response for row in responses for response in row]
    for b, s in (batch.loss_mask > 0).nonzero().tolist():
        response = flat[int(batch.response_index[b, s])]
        assert response[int(batch.token_index[b, s])] == int(batch.labels[b, s])


def test_rows_that_are_too_long_are_named() -> None:
    prompts, responses = make_batch(0)
    lengths = [
        len(p.token_ids) - 1 + sum(map(len, r)) for p, r in zip(prompts, responses, strict=True)
    ]
    longest = lengths.index(max(lengths))
    assert collate(prompts, responses, 1, max(lengths)).tokens.shape[1] == max(lengths)
    with pytest.raises(UserError) as caught:
        collate(prompts, responses, 1, max(lengths) - 1)
    message = str(caught.value)
    for word in (prompts[longest].uid, str(max(lengths)), "--seq-length", "--video-frames"):
        assert word in message
    assert "\n" not in message
