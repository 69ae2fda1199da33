"""Rows with sound: what they may say, and what becomes of films that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_longrl.config import Config
from megatron_longrl.data.prompts import Prompt, PromptBuilder
from megatron_longrl.data.rows import Row, RowError, load_rows
from megatron_longrl.data.tokenizer import HuggingFaceTokenizer
from megatron_longrl.errors import MissingAudioError
from megatron_longrl.media.modalities.audio.spec import AudioSpec
from megatron_longrl.models.prompts import prompt_builder
from tests.audio_files import beep, tone, write_film, write_sound
from tests.omni_files import write_tokenizer

SIZES = {
    "num_layers": 1,
    "hidden_size": 8,
    "ffn_hidden_size": 8,
    "num_attention_heads": 1,
    "seq_length": 4096,
    "max_position_embeddings": 4096,
    "vision_patch_size": 4,
    "vision_temporal_patch_size": 2,
    "video_min_pixels": 256,
    "video_max_pixels": 1600,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a film with sound and one without, and a sound."""
    folder = tmp_path_factory.mktemp("sound")
    write_tokenizer(folder)
    frames = [np.full((16, 24, 3), 9 * k, np.uint8) for k in range(12)]
    write_film(folder / "heard.mp4", frames, 4, [(0.0, beep(3.0, 1.0, 1.2, 48_000))])
    write_film(folder / "silent.mp4", frames, 4, None)
    write_sound(folder / "tone.wav", tone(1.0, 500, 16_000), 16_000)
    write_sound(folder / "click.wav", tone(0.01, 500, 16_000), 16_000)
    return folder


def builder(folder: Path, family: str = "qwen2_5_omni", **changes: Any) -> PromptBuilder:
    config = Config.of({"model_family": family, **SIZES, **changes})
    return prompt_builder(config, HuggingFaceTokenizer(folder), "sft")


def row(folder: Path, **fields: Any) -> Row:
    told = {"problem": "What sounds?", "answer": "A", **fields}
    (folder / "rows.jsonl").write_text(json.dumps(told))
    (loaded,) = load_rows([str(folder / "rows.jsonl")])
    return loaded


def sounds(prompt: Prompt) -> list[AudioSpec]:
    return [spec for spec in prompt.media if isinstance(spec, AudioSpec)]


@pytest.mark.parametrize(
    ("said", "default", "heard"),
    [(True, False, 1), (True, True, 1), (False, True, 0), (None, True, 1), (None, False, 0)],
)
def test_the_row_says_it_before_the_flag(
    said: bool | None, default: bool, heard: int, folder: Path
) -> None:
    told = {} if said is None else {"audio_in_video": said}
    made = builder(folder, audio_in_video=default).build(row(folder, videos="heard.mp4", **told))
    assert len(sounds(made)) == heard
    assert "audio_in_video" not in made.row.metadata


def test_transformers_name_for_it_means_the_same(folder: Path) -> None:
    made = row(folder, videos="heard.mp4", use_audio_in_video=True)
    assert made.audio_in_video is True and not made.metadata


@pytest.mark.parametrize("value", ["yes", 1, [True]])
def test_it_is_a_truth_value(value: Any, folder: Path) -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:1: field 'audio_in_video' is neither true nor"):
        row(folder, videos="heard.mp4", audio_in_video=value)


def test_sound_of_its_own_stands_where_the_question_says(folder: Path) -> None:
    asked = row(folder, problem="Before <audio> after <video>?", audios="tone.wav",
                videos="heard.mp4", audio_in_video=True)  # fmt: skip
    assert asked.data_type == "video"
    built = builder(folder)
    made = built.build(asked)
    shown = built.shown(made)
    assert (
        "Before <|audio_bos|><|AUDIO|> x 25<|audio_eos|> after <|vision_bos|><|audio_bos|>" in shown
    )
    assert [spec.num_tokens for spec in sounds(made)] == [25, 75]
    assert row(folder, audios=["tone.wav"]).data_type == "audio"


def test_silence_stands_for_missing_sound(folder: Path) -> None:
    asked = row(folder, videos=["heard.mp4", "silent.mp4"], audio_in_video=True)
    heard, silent = sounds(builder(folder, missing_audio="silence").build(asked))
    assert not heard.is_silent and silent.is_silent
    assert heard.num_tokens == silent.num_tokens == 75
    features, _ = silent.load(range(silent.num_units))
    assert features[0].unique().tolist() == [-1.5], "what the extractor makes of zeros"


def test_a_row_without_its_sound_is_skipped(folder: Path) -> None:
    asked = row(folder, videos="silent.mp4", audio_in_video=True)
    with pytest.raises(RowError, match=r"silent.mp4: it has no sound") as error:
        builder(folder).build(asked)
    assert error.value.problem.media == str(folder / "silent.mp4")


def test_or_ends_the_run(folder: Path) -> None:
    asked = row(folder, videos="silent.mp4", audio_in_video=True)
    with pytest.raises(MissingAudioError, match=r"silent.mp4 has no sound.*--missing-audio"):
        builder(folder, missing_audio="error").build(asked)


def test_sound_that_is_too_short(folder: Path) -> None:
    with pytest.raises(RowError, match=r"click.wav: its sound has 160 samples, too few"):
        builder(folder).build(row(folder, audios="click.wav"))


def test_a_model_that_hears_nothing_says_so(folder: Path) -> None:
    from tests.qwen_vl_files import write_tokenizer as write_other

    other = folder / "other"
    write_other(other)
    built = builder_of_qwen_vl(other)
    with pytest.raises(RowError, match="audio_in_video asks for the sound of the videos"):
        built.build(row(folder, videos="heard.mp4", audio_in_video=True))
    assert not sounds(built.build(row(folder, videos="heard.mp4", audio_in_video=False)))
    with pytest.raises(RowError, match="a medium of kind audio, and the model reads image and"):
        built.build(row(folder, audios="tone.wav"))


def builder_of_qwen_vl(folder: Path) -> PromptBuilder:
    return builder(folder, "qwen2_5_vl")
