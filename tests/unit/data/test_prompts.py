"""Prompts: where VILA places frames and newlines, what a demonstration is, what is refused."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longrl.config import Config, Entry
from megatron_longrl.data.collate import collate
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import Row, RowError
from megatron_longrl.data.templates import find_chat_template
from megatron_longrl.data.tokenizer import Tokenizer, build_tokenizer, train_sentencepiece
from megatron_longrl.errors import UserError
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.models.qwen_vl.layout import Qwen3Layout
from megatron_longrl.models.vila.layout import VilaLayout
from megatron_longrl.rewards.choice import choice_reward
from megatron_longrl.rewards.format import format_reward
from tests.real_tokenizers import write as write_tokenizer
from tests.visual_media import visual

TOKENS_PER_FRAME = 4
SIZES = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 32,
    "num_attention_heads": 2,
    "vision_image_size": 32,
    "vision_patch_size": 8,
    "vision_hidden_size": 32,
    "vision_num_layers": 2,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 32,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = train_sentencepiece(
        ["Where is the ball?\nA. left\nB. right It starts left."],
        tmp_path_factory.mktemp("tokenizer") / "t",
        350,
        ["<think>", "</think>", "<answer>", "</answer>"],
    )
    return build_tokenizer("SentencePieceTokenizer", path)


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Row:
    path = write_video(tmp_path_factory.mktemp("clip") / "a.webm", "libvpx-vp9", 9)
    return Row(
        problem_id="7",
        problem="Where is the ball?\nA. left\nB. right",
        answer="B",
        reasoning="It starts left.",
        videos=(path,),
        problem_type="temporal",
        data_type="video",
        source="train.jsonl:1",
    )


def make_builder(
    tokenizer: Tokenizer, max_frames: int | None, max_tokens: int, *, demonstrates: bool = False
) -> PromptBuilder:
    config = Config.of({**SIZES, "seq_length": 512})
    assert config.family.tokens_per_frame == TOKENS_PER_FRAME
    return PromptBuilder(
        tokenizer,
        VilaLayout(config.family, tokenizer),
        max_tokens=max_tokens,
        max_frames=max_frames,
        fps=None,
        demonstrates=demonstrates,
    )


@pytest.mark.parametrize("max_frames", [1, 5, None])
def test_expansion_equals_the_text_with_frames_in_it(
    tokenizer: Tokenizer, row: Row, max_frames: int | None
) -> None:
    """No slot and no newline is lost at any number of frames; the video is before the question."""
    prompt = make_builder(tokenizer, max_frames, 500).build(row)
    frames = max_frames or 9
    assert prompt.num_frames == frames
    assert prompt.media_lengths == (frames * TOKENS_PER_FRAME,)
    assert prompt.uid == row.uid

    slot, newline = [tokenizer.media_id], tokenizer.encode("\n")
    expected, is_media = tokenizer.encode("<|im_start|>user\n"), []
    is_media += [False] * len(expected)
    for _ in range(frames):
        expected += slot * TOKENS_PER_FRAME + newline
        is_media += [True] * TOKENS_PER_FRAME + [False] * len(newline)
    tail = tokenizer.encode(f"{row.problem}<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.token_ids.tolist() == expected + tail
    assert prompt.media_mask.tolist() == is_media + [False] * len(tail)
    assert prompt.token_ids.dtype == torch.long
    assert prompt.media_mask.dtype == torch.bool


def test_the_videos_frames_are_those_that_the_slots_are_for(tokenizer: Tokenizer, row: Row) -> None:
    (video,) = visual(make_builder(tokenizer, 5, 500).build(row))
    assert video.frame_indices == (0, 2, 4, 6, 8)
    assert video.frames().shape == (5, 3, 32, 32)


def test_two_videos_stand_one_behind_the_other(
    tokenizer: Tokenizer, row: Row, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    second = write_video(tmp_path / "b.webm", "libvpx-vp9", 3)
    builder = make_builder(tokenizer, 5, 500)
    prompt = builder.build(replace(row, videos=(row.videos[0], second)))
    assert [len(video.frame_indices) for video in visual(prompt)] == [5, 3]
    assert prompt.media_lengths == (5 * TOKENS_PER_FRAME, 3 * TOKENS_PER_FRAME)
    # As one video of eight frames would have it.
    (alone,) = builder.build(row).media
    assert prompt.media[0] == alone
    assert int(prompt.media_mask.sum()) == 8 * TOKENS_PER_FRAME


def test_text_rows_have_no_media(tokenizer: Tokenizer, row: Row) -> None:
    text = replace(row, videos=(), data_type="text")
    prompt = make_builder(tokenizer, 5, 500).build(text)
    assert prompt.media == ()
    assert not prompt.media_mask.any()
    assert tokenizer.decode(prompt.token_ids.tolist()) == (
        f"<|im_start|>user\n{row.problem}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_demonstration_is_what_the_rewards_ask_for(tokenizer: Tokenizer, row: Row) -> None:
    builder = make_builder(tokenizer, 5, 500)
    ids = builder.response_ids(row)
    assert ids[-1] == tokenizer.eos_id
    text = tokenizer.decode(ids[:-1])
    assert text == "<think>It starts left.</think><answer>B</answer>"
    assert format_reward(text) == choice_reward(text, row.answer) == 1.0
    short = builder.response_ids(replace(row, reasoning=""))
    assert tokenizer.decode(short) == "<answer>B</answer><|im_end|>"


def test_prompts_that_leave_no_room_are_refused(tokenizer: Tokenizer, row: Row) -> None:
    length = len(make_builder(tokenizer, 9, 500).build(row).token_ids)
    assert len(make_builder(tokenizer, 9, length).build(row).token_ids) == length
    with pytest.raises(UserError) as caught:
        make_builder(tokenizer, 9, length - 1).build(row)
    message = str(caught.value)
    for word in (row.source, f"{length} tokens", "9 frames", "--seq-length", "--video-frames"):
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("entry", "shared", "responses"),
    [("sft", True, 0), ("evaluate", True, 1), ("rl", True, 1), ("rl", False, 1)],
)
def test_room_is_kept_for_one_response(
    tokenizer: Tokenizer, row: Row, entry: Entry, shared: bool, responses: int
) -> None:
    longest = 10
    values: dict[str, Any] = {
        **SIZES,
        "video_frames": 3,
        "rollout_max_tokens": longest,
        "grpo_group_size": 4,
        "shared_prompt": shared,
    }
    fits = Config.of({**values, "seq_length": 500})
    builder = prompt_builder(fits, tokenizer, entry)
    length = len(builder.build(row).token_ids)
    target = len(builder.response_ids(row)) - 1 if entry == "sft" else 0
    enough = length + responses * longest + target
    prompt_builder(Config.of({**values, "seq_length": enough}), tokenizer, entry).build(row)
    with pytest.raises(UserError, match="raise --seq-length"):
        config = Config.of({**values, "seq_length": enough - 1})
        prompt_builder(config, tokenizer, entry).build(row)


def test_bad_videos_are_errors_of_the_video(tokenizer: Tokenizer, row: Row, tmp_path: Path) -> None:
    for name, content in (("gone.webm", None), ("text.mp4", b"no video"), ("empty.webm", b"")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RowError, match=f"^train.jsonl:1: .*{name}"):
            make_builder(tokenizer, 5, 500).build(replace(row, videos=(tmp_path / name,)))


@pytest.mark.parametrize("demonstrates", [False, True])
def test_the_length_is_known_without_reading_files(
    tokenizer: Tokenizer, row: Row, monkeypatch: pytest.MonkeyPatch, *, demonstrates: bool
) -> None:
    builder = make_builder(tokenizer, 5, 500, demonstrates=demonstrates)
    expected = len(builder.build(row).token_ids)
    expected += len(builder.response_ids(row)) if demonstrates else 0

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr("megatron_longrl.media.modalities.visual.layout.content_hash", fail)
    assert builder.length(row) == expected
    with pytest.raises(RowError, match=r"gone\.webm: No such file"):
        builder.length(replace(row, videos=(row.videos[0].with_name("gone.webm"),)))
    tight = make_builder(tokenizer, 5, expected - 2, demonstrates=demonstrates)
    with pytest.raises(RowError, match="raise --seq-length"):
        tight.length(row)


def test_templates_have_names() -> None:
    with pytest.raises(UserError, match="no_such_template is not known: give a file, or one of qw"):
        find_chat_template("no_such_template")


STAGES = {
    # stage: (what raises, whether it is the file's)
    "look-up": ("megatron_longrl.data.prompts.look_up", True),
    "probe": ("megatron_longrl.media.modalities.visual.layout.probe", True),
    "hash": ("megatron_longrl.media.modalities.visual.layout.content_hash", True),
    "sampling": ("{layout}.frame_indices", True),
    "resize": ("{layout}.preprocess_spec", True),
    "slots": ("{layout}.parts", True),
    "template": ("megatron_longrl.data.conversation.Conversation.pieces", False),
    "tokenizer": ("{tokenizer}.encode", False),
    "positions": ("{layout}.positions", False),
    "target": ("megatron_longrl.data.conversation.Conversation.target", False),
}


def raise_at(
    stage: str, error: BaseException, builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Let a stage raise; whether it is the file's error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    name, is_of_file = STAGES[stage]
    owners = {"layout": type(builder._layout), "tokenizer": type(builder._tokenizer)}
    names = {key: f"{owner.__module__}.{owner.__qualname__}" for key, owner in owners.items()}
    monkeypatch.setattr(name.format_map(names), fail)
    return is_of_file


def look_at(builder: PromptBuilder, row: Row, stage: str) -> None:
    """Build a prompt; of the look-up before media are opened, too."""
    if stage == "look-up":
        problem = builder.problem(row)
        if problem is not None:
            raise RowError(row.source, problem.reason, problem.media)
    builder.build(row)


@pytest.mark.parametrize("error", [AttributeError("no 'codec'"), ZeroDivisionError("by zero")])
@pytest.mark.parametrize("stage", STAGES)
def test_whatever_a_library_raises_is_the_row(
    tokenizer: Tokenizer,
    row: Row,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    error: Exception,
) -> None:
    builder = make_builder(tokenizer, 5, 500, demonstrates=True)
    is_of_file = raise_at(stage, error, builder, monkeypatch)
    with caplog.at_level("DEBUG", logger="megatron_longrl"), pytest.raises(RowError) as caught:
        look_at(builder, row, stage)
    problem = caught.value.problem
    file = f"{row.videos[0]}: " if is_of_file else ""
    said = f"{file}{type(error).__name__}: {error} (at data/{Path(__file__).name}:"
    assert problem.source == "train.jsonl:1" and problem.reason.startswith(said)
    assert problem.media == (str(row.videos[0]) if is_of_file else None)
    assert "in fail" in caplog.text, "the log has the traceback"
    assert pickle.loads(pickle.dumps(caught.value)).problem == problem


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", STAGES)
def test_no_memory_and_an_interrupt_are_not_the_row(
    tokenizer: Tokenizer,
    row: Row,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: BaseException,
) -> None:
    builder = make_builder(tokenizer, 5, 500, demonstrates=True)
    raise_at(stage, error, builder, monkeypatch)
    with pytest.raises(type(error)):
        look_at(builder, row, stage)


@pytest.mark.parametrize("place", ["before", "middle", "end", "two", "none"])
def test_media_stand_at_their_placeholders(
    tokenizer: Tokenizer, row: Row, tmp_path: Path, write_video: Callable[..., Path], place: str
) -> None:
    second = write_video(tmp_path / "b.webm", "libvpx-vp9", 3)
    texts = {
        "before": ["", "Where is it?"],
        "middle": ["First ", " then what?"],
        "end": ["Where? ", ""],
        "two": ["a", "b", "c"],
        "none": ["Where is it?"],
    }[place]
    videos = (row.videos[0], second) if place == "two" else row.videos
    prompt = make_builder(tokenizer, 2, 500).build(
        replace(row, problem="<video>".join(texts), videos=videos)
    )
    slots = [tokenizer.media_id] * TOKENS_PER_FRAME + tokenizer.encode("\n")
    expected = tokenizer.encode("<|im_start|>user\n" + (texts[0] if place != "none" else ""))
    for text in texts[1:] if place != "none" else texts:
        expected += slots * 2 + tokenizer.encode(text if text is not texts[-1] else "")
        if text is texts[-1]:
            expected += tokenizer.encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.token_ids.tolist() == expected
    assert [spec.path for spec in prompt.media] == [str(path) for path in videos]


@pytest.mark.parametrize(
    ("problem", "videos", "message"),
    [
        ("<video><video>?", 1, "has 2 <video>, and the row 1 videos"),
        ("<video>?", 2, "has 1 <video>, and the row 2 videos"),
        ("<image>?", 1, "has 1 <image>, and the row 0 images"),
        ("<video>?", 0, "has 1 <video>, and the row 0 videos"),
        ("<video><image>?", 1, "has 1 <image>, and the row 0 images"),
    ],
)
def test_placeholders_without_media_are_the_rows_mistake(
    tokenizer: Tokenizer, row: Row, problem: str, videos: int, message: str
) -> None:
    builder, wrong = make_builder(tokenizer, 2, 500), replace(row, problem=problem)
    wrong = replace(wrong, videos=row.videos * videos)
    with pytest.raises(RowError, match=message):
        builder.build(wrong)
    found = builder.problem(wrong)
    assert found is not None and message in found.reason


def test_what_can_be_known_without_opening_files(
    tokenizer: Tokenizer, row: Row, tmp_path: Path
) -> None:
    builder = make_builder(tokenizer, 2, 100)
    assert builder.problem(row) is None
    os.mkfifo(tmp_path / "pipe.mp4")
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    wrong = {
        tmp_path / "gone.mp4": "No such file",
        tmp_path / "pipe.mp4": "a named pipe",
        tmp_path: "a folder",
        loop: "symbolic links",
        tmp_path / ("x" * 300): "name too long",
        row.videos[0] / "x.mp4": "Not a directory",
    }
    for path, reason in wrong.items():
        found = builder.problem(replace(row, videos=(path,)))
        assert found is not None and reason in found.reason and found.media == str(path), path
    long = builder.problem(replace(row, problem="ball? " * 60))
    assert long is not None and "leaves 100 beside" in long.reason and long.media is None


def test_the_demonstration_needs_room_too(tokenizer: Tokenizer, row: Row) -> None:
    values: dict[str, Any] = {**SIZES, "video_frames": 3, "rollout_max_tokens": 1}
    fits = prompt_builder(Config.of({**values, "seq_length": 500}), tokenizer, "sft")
    length = len(fits.build(row).token_ids) - 1 + len(fits.response_ids(row))
    prompt_builder(Config.of({**values, "seq_length": length}), tokenizer, "sft").build(row)
    short = prompt_builder(Config.of({**values, "seq_length": length - 1}), tokenizer, "sft")
    with pytest.raises(
        RowError, match=rf"its demonstration \d+, more than --seq-length {length - 1}: ra"
    ):
        short.build(row)
    endless = short.problem(replace(row, reasoning="It starts left. " * 200))
    assert endless is not None and "demonstration" in endless.reason


@pytest.mark.parametrize("entry", ["sft", "rl"])
def test_a_row_longer_than_the_model_allows_is_told_what_helps(
    tokenizer: Tokenizer, row: Row, entry: Entry
) -> None:
    sizes: dict[str, Any] = {**SIZES, "rollout_max_tokens": 8, "max_position_embeddings": 16}
    config = Config.of({**sizes, "video_frames": 3, "seq_length": 16})
    with pytest.raises(RowError, match=r"--max-position-embeddings 16.*: lower --vi") as error:
        prompt_builder(config, tokenizer, entry).build(row)
    assert "--seq-length" not in str(error.value)
    assert str(error.value).endswith("--rollout-max-tokens") == (entry == "rl")


def test_frames_are_no_remedy_for_a_long_question(tokenizer: Tokenizer, row: Row) -> None:
    words = replace(row, problem="ball? " * 60, videos=())
    with pytest.raises(
        RowError, match=r"prompt has \d+ tokens, and --seq-length leaves 50"
    ) as error:
        make_builder(tokenizer, 2, 50).build(words)
    assert "frames" not in str(error.value)


def test_a_prompt_is_shown_with_its_media_abbreviated(tokenizer: Tokenizer, row: Row) -> None:
    builder = make_builder(tokenizer, 2, 500)
    assert builder.shown(builder.build(row)) == (
        f"<|im_start|>user\n<media> x 4\n<media> x 4\n{row.problem}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_placeholders_in_text_or_in_a_response_are_no_places_for_media(
    tmp_path: Path, row: Row
) -> None:
    """A question that names them, and a policy that draws them: embeddings stay where they were."""
    qwen = build_tokenizer("HuggingFaceTokenizer", write_tokenizer(tmp_path, "qwen3-vl"))
    sizes = {"vision_merge_size": 2, "vision_temporal_patch_size": 2, "vision_patch_size": 4}
    pixels = {"video_min_pixels": 64, "video_max_pixels": 1024}
    family = {"model_family": "qwen3_vl", "vision_image_size": 0}
    config = Config.of({**SIZES, **sizes, **pixels, **family, "seq_length": 500})
    builder = PromptBuilder(
        qwen, Qwen3Layout(config.family, qwen), max_tokens=500, max_frames=4, fps=None
    )
    pads = "<|video_pad|><|vision_start|><|image_pad|><|vision_end|>"
    plain, named = (builder.build(replace(row, problem=q)) for q in ("Where?", f"Where{pads}?"))
    assert named.media_lengths == plain.media_lengths
    place = plain.media_mask.nonzero().flatten()
    assert named.media_mask.nonzero().flatten().tolist() == place.tolist()
    drawn = qwen.encode(f"so{pads}<|im_end|>")
    batch = collate([named], [[drawn, drawn]], 1, 1000)
    in_slots = batch.media_index[0] >= 0
    assert in_slots.nonzero().flatten().tolist() == place.tolist()
    assert batch.media_index[0][in_slots].tolist() == list(range(len(place)))
    step = batch.position_ids[0, -len(drawn) :].diff(dim=0)
    assert (step == 1).all(), "text goes on as text"


@pytest.mark.parametrize("stage", ["looked up", "opened", "hashed"])
def test_a_file_that_does_not_answer_costs_its_row(
    tokenizer: Tokenizer, row: Row, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network that is gone; the next row is not kept waiting."""
    config = Config.of({**SIZES, "seq_length": 512, "media_timeout": 0.3, "video_frames": 4})
    builder = prompt_builder(config, tokenizer, "sft")
    end = threading.Event()
    name = {
        "looked up": "megatron_longrl.data.prompts.look_up",
        "opened": "megatron_longrl.media.modalities.visual.layout.probe",
        "hashed": "megatron_longrl.media.modalities.visual.layout.content_hash",
    }[stage]
    with monkeypatch.context() as waiting:
        waiting.setattr(name, lambda *_: end.wait(60))
        before = time.monotonic()
        if stage == "looked up":
            problem = builder.problem(row)
            assert problem is not None
            reason = problem.reason
        else:
            with pytest.raises(RowError) as raised:
                builder.build(row)
            reason = str(raised.value)
        assert time.monotonic() - before < 20
    end.set()
    assert f"{row.videos[0]}: did not answer within 0.3 seconds (--media-timeout)" in reason
    assert builder.build(row).num_frames == 4
