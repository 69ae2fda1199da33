"""The way of a row into training: expanded into a prompt, its files decoded; for a Qwen-VL, whose
template knows media, and a VILA, or for a Qwen2.5-Omni, which hears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_longrl.config import Config
from megatron_longrl.data.conversation import Conversation
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import Row, RowError
from megatron_longrl.data.tokenizer import build_tokenizer, train_sentencepiece
from megatron_longrl.media.media_error import MediaError, printable
from megatron_longrl.media.modalities.audio.spec import AudioSpec
from megatron_longrl.media.modalities.visual.spec import VisualSpec
from megatron_longrl.media.spec import MediaSpec, UnitTensors, load_units
from megatron_longrl.models.qwen2_5_omni.layout import OmniLayout
from megatron_longrl.models.qwen_vl.layout import Qwen3Layout
from megatron_longrl.models.vila.layout import VilaLayout
from tests.fuzz.isolated import READ, REFUSED, WRONG, Outcome
from tests.omni_files import write_tokenizer as write_omni_tokenizer
from tests.real_tokenizers import write as write_tokenizer

MODEL = {
    "num_layers": 1,
    "hidden_size": 32,
    "ffn_hidden_size": 32,
    "num_attention_heads": 2,
    "seq_length": 300,
    "vision_patch_size": 4,
    "vision_hidden_size": 32,
    "vision_num_layers": 1,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 32,
    "video_frames": 4,
}
QWEN = {
    "model_family": "qwen3_vl",
    "vision_merge_size": 2,
    "vision_temporal_patch_size": 2,
    "video_min_pixels": 64,
    "video_max_pixels": 4096,
    "image_min_pixels": 64,
    "image_max_pixels": 1024,
}
VILA = {"vision_image_size": 32, "vision_patch_size": 8}
OMNI = {
    **QWEN,
    "model_family": "qwen2_5_omni",
    "audio_hidden_size": 32,
    "audio_num_layers": 1,
    "audio_num_attention_heads": 2,
    "audio_ffn_hidden_size": 32,
}


def builders(folder: Path, max_tokens: int = 300) -> list[PromptBuilder]:
    """One of each; their tokenizers are written into a folder."""
    texts = ["<|im_start|>user\nWhere is the ball?<|im_end|>\n"]
    qwen = write_tokenizer(folder / "hf", "qwen3-vl")
    pieces = train_sentencepiece(texts, folder / "t", 330)
    found = []
    for fields, layout_of, tokenizer in (
        (QWEN, Qwen3Layout, build_tokenizer("HuggingFaceTokenizer", qwen)),
        (VILA, VilaLayout, build_tokenizer("SentencePieceTokenizer", pieces)),
    ):
        layout = layout_of(Config.of({**MODEL, **fields}).family, tokenizer)
        conversation = Conversation(tokenizer, layout, prompt_template="think-answer")
        plain: dict[str, Any] = {"max_tokens": max_tokens, "max_frames": 4, "fps": None}
        found.append(
            PromptBuilder(tokenizer, layout, conversation=conversation, demonstrates=True, **plain)
        )
    return found


def hearing_builder(folder: Path) -> PromptBuilder:
    """A Qwen2.5-Omni's, to which a film without sound is silent."""
    folder.joinpath("omni").mkdir()
    write_omni_tokenizer(folder / "omni")
    tokenizer = build_tokenizer("HuggingFaceTokenizer", folder / "omni")
    return PromptBuilder(
        tokenizer,
        OmniLayout(Config.of({**MODEL, **OMNI}).family, tokenizer),
        max_tokens=100_000,
        modalities=("video", "image", "audio"),
        max_frames=4,
        fps=None,
        missing_audio="silence",
        demonstrates=True,
    )


def expand_and_decode(row: Row, builder: PromptBuilder) -> Outcome:
    """What comes of a row: its pixels and sound, or one line that names the row or the file."""
    found = builder.problem(row)
    try:
        prompt = builder.build(row)
    except RowError as error:
        return _judge_line(str(error), f"{printable(row.source)}: ")
    mask = int(prompt.media_mask.sum())
    if found is not None:
        return Outcome(WRONG, f"built, though {found}")
    media = len(row.media) + (len(row.videos) if row.audio_in_video else 0)
    if mask != sum(prompt.media_lengths) or len(prompt.media) != media:
        return Outcome(WRONG, f"{mask} placeholders of {len(prompt.media)} media")
    builder.shown(prompt)
    builder.response_ids(row)
    loaded = load_units([(spec, range(spec.num_units)) for spec in prompt.media])
    for spec, units in zip(prompt.media, loaded, strict=True):
        if isinstance(units, MediaError):
            return _judge_line(str(units), f"{printable(spec.path)}: ")
        if not units[0].isfinite().all() or (wrong := _wrong_shape(spec, units)):
            return Outcome(WRONG, wrong or "values that are not finite")
    return Outcome(READ)


def _wrong_shape(spec: MediaSpec, units: UnitTensors) -> str | None:
    """What is wrong with the sizes of a medium's units."""
    if isinstance(spec, AudioSpec):
        features, frames = units
        how = spec.preprocess
        if features.shape != (spec.num_units, how.unit_frames, how.mel.bins):
            return f"features of shape {tuple(features.shape)}"
        return None if how.tokens_of(int(frames.sum())) == spec.num_tokens else f"{frames} frames"
    assert isinstance(spec, VisualSpec)
    pixels = units[0].flatten(0, 1)
    expected = (len(spec.frame_indices), 3, spec.preprocess.height, spec.preprocess.width)
    return None if pixels.shape == expected else f"pixels of {tuple(pixels.shape)}, not {expected}"


def _judge_line(line: str, start: str) -> Outcome:
    is_right = line.startswith(start) and line.isprintable() and len(line) < 2000
    return Outcome(REFUSED if is_right else WRONG, line)
