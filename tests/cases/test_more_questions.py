"""More answers with tags, and more questions with placeholders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from megatron_longrl.data.collate import collate
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import RowError, load_rows
from tests.cases import doors
from tests.fuzz.as_training import builders
from tests.unit.data.video_files import write

TAGGED: dict[str, str | None] = {
    "<answer>B</answer>": "B",
    "<think>x</think>\n<answer> B </answer>\n": "B",
    "<answer>A</answer> or rather <answer>B</answer>": "B",
    "<think>is it <answer>A</answer>?</think><answer>B</answer>": "B",
    "So: <answer>B</answer>, because it moved": "B",
    "<think>it moved</think>B": "B",
    "<answer>the red\ncup</answer>": "the red\ncup",
    "<answer>C</answer><answer>A</answer><answer>B</answer>": "B",
    "<answer>x < y</answer>": "x < y",
    "B": "B",
    "a<b": "a<b",
    "<answer>B": None,
    "B</answer>": None,
    "<think>B": None,
    "<answer></answer>": None,
    "<answer>A</answer><answer> </answer>": None,
    "<think>x</think>": None,
}
"""Answer of a row, and the reference that it means; None where none could be reached."""


@pytest.mark.parametrize("text", TAGGED)
def test_answers_with_tags(tmp_path: Path, text: str) -> None:
    row = {"problem": "Which?", "answer": text, "problem_type": "exact"}
    path = doors.write_rows(tmp_path / "rows.jsonl", [row])
    expected = TAGGED[text]
    if expected is None:
        status, report = doors.check(path)
        assert (status, report["problems"][0]["line"]) == (1, 1)
        return
    assert doors.check(path)[0] == 0
    (loaded,) = load_rows([path])
    assert loaded.answer == expected
    found = doors.scores(tmp_path, [row], [doors.response(expected)], "accuracy")
    assert found[0]["accuracy"] == 1.0
    builder = builders(tmp_path, max_tokens=4000)[0]
    target, _ = builder.shown_target(loaded)
    assert target.count("<answer>") == target.count("</answer>") == 1
    assert f"<answer>{expected}</answer>" in target


PLACED: dict[str, tuple[str, int, int, list[str]]] = {
    "in the middle": ("Is <video> long?", 0, 1, ["Is ", "v0", " long?"]),
    "at the end": ("Describe this: <video>", 0, 1, ["Describe this: ", "v0"]),
    "two": ("Compare <video> with <video>.", 0, 2, ["Compare ", "v0", " with ", "v1", "."]),
    "side by side": ("<video><video>Which?", 0, 2, ["v0", "v1", "Which?"]),
    "on lines": ("<image>\n<image>\nWhich?", 2, 0, ["i0", "\n", "i1", "\nWhich?"]),
    "a video before an image": ("<video> or <image>?", 1, 1, ["v0", " or ", "i0", "?"]),
    "an image alone has a place": ("See <image>.", 1, 1, ["v0", "See ", "i0", "."]),
    "none": ("Which?", 1, 2, ["i0", "v0", "v1", "Which?"]),
    "other words": ("Is <|video_pad|> or <Video> a token?", 0, 1,
                    ["v0", "Is <|video_pad|> or <Video> a token?"]),
}  # fmt: skip
"""Question, images, videos, what stands behind what."""


@pytest.fixture(params=[0, 1], ids=["qwen3_vl", "vila"])
def builder(request: pytest.FixtureRequest, tmp_path: Path) -> PromptBuilder:
    return builders(tmp_path / "tokenizers", max_tokens=4000)[request.param]


def row_of(folder: Path, question: str, images: int, videos: int) -> dict[str, Any]:
    """Media of different sizes and lengths, by which they are known."""
    for number in range(images):
        Image.new("RGB", (32, 32 + 16 * number), (9, 99, 200)).save(folder / f"i{number}.png")
    for number in range(videos):
        write(folder / f"v{number}.webm", "libvpx-vp9", 2 + 2 * number)
    return {
        "problem": question, "answer": "b",
        "images": [f"i{n}.png" for n in range(images)],
        "videos": [f"v{n}.webm" for n in range(videos)],
    }  # fmt: skip


@pytest.mark.parametrize("name", PLACED)
def test_media_stand_at_their_placeholders(
    tmp_path: Path, builder: PromptBuilder, name: str
) -> None:
    question, images, videos, expected = PLACED[name]
    rows = doors.write_rows(tmp_path / "rows.jsonl", [row_of(tmp_path, question, images, videos)])
    assert doors.check(rows)[0] == 0
    (row,) = load_rows([rows])
    assert builder.problem(row) is None
    prompt = builder.build(row)
    media = [part for part in expected if re.fullmatch(r"[iv]\d", part)]
    assert [Path(spec.path).stem for spec in prompt.media] == media
    assert int(prompt.media_mask.sum()) == sum(prompt.media_lengths)
    # As many slots stand before each text as the media before it have.
    shown, at, before = builder.shown(prompt), 0, 0
    for part in expected:
        if part in media:
            before += prompt.media_lengths[media.index(part)]
        elif re.search("[A-Za-z]", part):
            at = shown.index(part.strip(), at)
            assert sum(map(int, re.findall(r" x (\d+)", shown[:at]))) == before, (part, shown)
            at += len(part.strip())
    assert "<video>" not in shown and "<image>" not in shown


DISAGREE = {
    "more than media": ("<video><video>", 0, 1),
    "fewer than media": ("<video>?", 0, 2),
    "of an image that is not there": ("<image> and <video>", 0, 1),
    "two images, one of them placed": ("<image>?", 2, 0),
    "in a text row": ("What does <video> mean?", 0, 0),
    "many": ("<image>" * 50, 3, 0),
}


@pytest.mark.parametrize("name", DISAGREE)
def test_placeholders_that_do_not_agree(tmp_path: Path, builder: PromptBuilder, name: str) -> None:
    question, images, videos = DISAGREE[name]
    rows = doors.write_rows(tmp_path / "rows.jsonl", [row_of(tmp_path, question, images, videos)])
    status, report = doors.check(rows)
    assert (status, report["problems"][0]["line"]) == (1, 1)
    (row,) = load_rows([rows])
    assert builder.problem(row) is not None
    with pytest.raises(RowError, match=r"rows.jsonl:1: the question has"):
        builder.build(row)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_what_the_policy_draws_moves_nothing(
    tmp_path: Path, builder: PromptBuilder, count: int
) -> None:
    """Ids of placeholders in a response are text."""
    rows = doors.write_rows(tmp_path / "rows.jsonl", [row_of(tmp_path, "Is <video> long?", 0, 1)])
    (row,) = load_rows([rows])
    prompt = builder.build(row)
    slot = int(prompt.token_ids[prompt.media_mask][0])
    drawn = [*builder.response_ids(row), *[slot] * count]
    batch = collate([prompt], [[drawn, drawn[::-1]]], 1, 4000)
    slots = batch.media_index[0] >= 0
    assert int(slots.sum()) == sum(prompt.media_lengths)
    assert torch.equal(slots[: len(prompt.media_mask)], prompt.media_mask)


def test_options_with_placeholders(tmp_path: Path) -> None:
    """Only the question is read for them."""
    row = {"problem": "Which?", "answer": "<video>", "options": ["<image>", "<video>"]}
    assert doors.check(doors.write_rows(tmp_path / "rows.jsonl", [json.dumps(row)]))[0] == 0
