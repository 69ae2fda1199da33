"""Defects of Long-RL's public code, by their numbers: none of them is in our prompts and rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_longrl.data.collate import Batch, collate
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.parallel.attention.tree_mask import token_coordinates, tree_mask

MEDIA = 9
VIEW = PreprocessSpec(8, 8, (0.5,) * 3, (0.5,) * 3)


def prompt_of(uid: str, layout: str, *contents: str) -> Prompt:
    """# is a media slot, / opens the next video's slots, letters are text."""
    counts = [part.count("#") for part in layout.split("/")] if contents else []
    symbols = layout.replace("/", "")
    ids = [MEDIA if c == "#" else ord(c) for c in symbols]
    row = Row(uid, layout, "A", "", (Path("v"),), "general", "video", "t.jsonl:1", uid)
    return Prompt(
        uid=uid,
        token_ids=torch.tensor(ids),
        media_mask=torch.tensor([c == "#" for c in symbols]),
        media=tuple(
            VideoSpec("v", content, tuple(range(n)), VIEW)
            for content, n in zip(contents, counts, strict=True)
        ),
        media_lengths=tuple(counts),
        row=row,
    )


def embed(batch: Batch, videos: dict[str, Tensor]) -> Tensor:
    """What the model reads in each slot, as the trainer looks it up; NaN for text."""
    table = torch.cat([videos[key] for key in batch.media_keys])
    field = torch.full(batch.tokens.shape, float("nan"))
    field[batch.media_index >= 0] = table[batch.media_index[batch.media_index >= 0]]
    return field


def four_prompts() -> tuple[list[Prompt], dict[str, Tensor]]:
    """Videos of different lengths; the embedding of slot s of video k is 100 k + s."""
    prompts = [
        prompt_of(f"u{k}", "x" + "#\n" * n + "y" * k + "z", f"v{k}")
        for k, n in enumerate((3, 1, 4, 2))
    ]
    embeddings = {
        p.media[0].key(): torch.arange(p.media_lengths[0]) + 100.0 * k
        for k, p in enumerate(prompts)
    }
    return prompts, embeddings


def test_reordered_samples_keep_their_videos_defect_1() -> None:
    """Looked up by key and not by position: no order of the rows changes what a prompt sees."""
    prompts, embeddings = four_prompts()
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        chosen = [prompts[k] for k in order]
        batch = collate(chosen, [[[101]]] * 4, 1, 50)
        assert batch.uids == [prompt.uid for prompt in chosen]
        seen = embed(batch, embeddings)
        for b, prompt in enumerate(chosen):
            mine = seen[b][~seen[b].isnan()]
            assert torch.equal(mine, embeddings[prompt.media[0].key()])


def test_response_positions_go_on_from_the_prompt_defect_2() -> None:
    """Beside a longer prompt, whose row pads this one, they do not restart."""
    prompts = [prompt_of("short", "ab"), prompt_of("long", "abcdefgh")]
    batch = collate(prompts, [[[1, 2, 3], [4]], [[5, 6], [7]]], 8, 50)
    positions = [
        [batch.position_ids[b, span].tolist() for span in spans]
        for b, spans in zip(batch.batch_index, batch.spans, strict=True)
    ]
    assert positions == [
        [[1, 2, 3], [1]],
        [[7, 8], [7]],
    ]


def test_positions_are_those_that_the_engine_counts_defect_3() -> None:
    """vLLM numbers a prompt's embeddings and the response behind them 0, 1, 2 …; so do rows."""
    prompt = prompt_of("u", "ab" + "##\n" * 5 + "c", "v")
    batch = collate([prompt], [[[1, 2, 3], [4], [5, 6]]], 8, 80)
    coordinates = token_coordinates(batch.branch_ids)
    seen = tree_mask(coordinates, coordinates)
    for span in batch.spans[0]:
        last = span.stop - 1
        positions = batch.position_ids[0, seen[0, last]].sort().values
        length = len(prompt.token_ids) - 1 + span.stop - span.start
        assert positions.tolist() == list(range(length))


def test_no_visual_token_is_dropped_defect_4() -> None:
    prompt = prompt_of("u", "<user>" + ("#" * 122 + "\n") * 32 + "Where?", "v")
    batch = collate([prompt], [[[1], [2]]], 64, 5000)
    used = batch.media_index[batch.media_index >= 0]
    assert torch.equal(used, torch.arange(3904))
    assert (batch.tokens[batch.media_index >= 0] == MEDIA).all()


def test_rows_of_a_micro_batch_do_not_mix_frames_defect_5() -> None:
    prompts, embeddings = four_prompts()
    together = embed(collate(prompts, [[[101]]] * 4, 1, 50), embeddings)
    for b, prompt in enumerate(prompts):
        alone = embed(collate([prompt], [[[101]]], 1, 50), embeddings)[0]
        torch.testing.assert_close(together[b, : len(alone)], alone, rtol=0, atol=0, equal_nan=True)
        assert together[b, len(alone) :].isnan().all()


def test_a_video_shared_by_rows_is_embedded_once() -> None:
    prompts = [
        prompt_of("u0", "#/##z", "one", "two"),
        prompt_of("u1", "##z", "two"),
        prompt_of("u2", "text"),
        prompt_of("u3", "#/#z", "one", "one"),
    ]
    batch = collate(prompts, [[[1]]] * 4, 1, 50)
    assert batch.media_keys == [prompts[0].media[0].key(), prompts[0].media[1].key()]
    assert [row[row >= 0].tolist() for row in batch.media_index] == [
        [0, 1, 2],
        [1, 2],
        [],
        [0, 0],
    ]
