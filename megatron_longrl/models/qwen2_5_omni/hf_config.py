"""The settings of Qwen2.5-Omni's checkpoints, whole ones and those of a thinker alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.sizes import MOST_HEADS, MOST_LAYERS, WIDEST
from megatron_longrl.models.hf_processors import COMMON_FILE
from megatron_longrl.models.hf_settings import HfConfig, Settings
from megatron_longrl.models.qwen2_5_omni.config import OmniSection
from megatron_longrl.models.qwen_vl.hf_config import (
    CLIP,
    model_settings,
    pixel_fields,
    text_fields,
    vision_fields,
    vision_layers,
    vision_settings,
)
from megatron_longrl.models.text.kinds import QWEN2_5_OMNI_DEFAULTS

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.models.family import HfExport

WHOLE, THINKER = "qwen2_5_omni", "qwen2_5_omni_thinker"
"""``model_type`` of both kinds."""

_VIDEO_PIXELS = {"video_min_pixels": 128 * 28 * 28, "video_max_pixels": 768 * 28 * 28}
"""Pixels of each frame, which transformers' Qwen2_5OmniProcessor sets regardless of the files."""
_PIXELS = {
    **CLIP,
    **_VIDEO_PIXELS,
    "image_min_pixels": 56 * 56,
    "image_max_pixels": 28 * 28 * 1280,
}
_VISION = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
}
"""Defaults of transformers' Qwen2_5OmniVisionEncoderConfig."""
_FEATURES = {"sampling_rate": 16_000, "hop_length": 160, "n_fft": 400, "dither": 0.0}
"""Settings of the feature extractor of which one value is implemented."""


def fields(source: HfConfig) -> dict[str, Any]:
    """Fields of the configuration that a checkpoint determines."""
    outer = source.settings
    has_talker = outer.text("model_type", WHOLE) == WHOLE
    thinker = outer.section("thinker_config") if has_talker else outer
    within = HfConfig(source.folder, thinker)
    vision = vision_settings(within)
    vision.only({"hidden_act": "silu"})
    tied = thinker.flag("tie_word_embeddings", False)
    text = thinker.section("text_config").changed(tie_word_embeddings=tied)
    found = {
        **text_fields(text, "qwen2", QWEN2_5_OMNI_DEFAULTS, (16, 24, 24)),
        **vision_fields(vision, _VISION),
        **pixel_fields(within, _PIXELS, image_defaults={}, old_names=("image", "video")),
        **_VIDEO_PIXELS,
        "vision_gated_mlp": True,
        "vision_patch_bias": False,
        "vision_window_size": vision.whole("window_size", 112, most=WIDEST),
        "vision_full_attention_layers": vision_layers(
            vision, "fullatt_block_indexes", (7, 15, 23, 31)
        ),
        "vision_tokens_per_second": thinker.whole("position_id_per_seconds", 25),
        "audio_interleaving_seconds": thinker.whole("seconds_per_chunk", 2),
        "has_talker": has_talker,
    }
    return {**found, **_audio_fields(source.folder, thinker, found["hidden_size"])}


def _audio_fields(folder: Path, thinker: Settings, hidden_size: int) -> dict[str, Any]:
    audio = thinker.section("audio_config")
    audio.only({"activation_function": "gelu", "scale_embedding": False})
    if audio.whole("output_dim", 3584, most=WIDEST) != hidden_size:
        raise audio.wrong("output_dim", f"not the hidden_size of the text_config, {hidden_size}")
    window = audio.whole("n_window", 100)
    if window % 2:
        raise audio.wrong("n_window", "no even number, so that tokens would reach over chunks")
    if audio.whole("max_source_positions", 1500) < window:
        raise audio.wrong("max_source_positions", f"less than n_window, {window}")
    bins = audio.whole("num_mel_bins", 128, most=WIDEST)
    _check_features(folder, bins)
    return {
        "audio_hidden_size": audio.whole("d_model", 1280, most=WIDEST),
        "audio_num_layers": audio.whole("encoder_layers", 32, most=MOST_LAYERS),
        "audio_num_attention_heads": audio.whole("encoder_attention_heads", 20, most=MOST_HEADS),
        "audio_ffn_hidden_size": audio.whole("encoder_ffn_dim", 5120, most=WIDEST),
        "audio_mel_bins": bins,
        "audio_chunk_frames": 2 * window,
    }


def _check_features(folder: Path, bins: int) -> None:
    """Refuse features that are not those of the installed transformers' extractor."""
    for name, inner in ((COMMON_FILE, "feature_extractor"), ("preprocessor_config.json", None)):
        if not (folder / name).exists():
            continue
        settings = Settings.of(folder / name)
        if inner is not None and inner not in settings:
            continue
        found = settings.section(inner) if inner is not None else settings
        found.only({**_FEATURES, "feature_size": bins})
        return


def hf_configs(config: ModelConfig, export: HfExport) -> dict[str, dict[str, Any]]:
    """``config.json`` of an export."""
    dtype = export.dtype
    family = config.family_as(OmniSection)
    vision = {
        "model_type": "qwen2_5_omni_vision_encoder",
        "hidden_act": "silu",
        "window_size": family.vision_window_size,
        "fullatt_block_indexes": list(family.vision_full_attention_layers),
    }
    architecture = "Qwen2_5OmniThinkerForConditionalGeneration"
    thinker = model_settings(config, dtype, WHOLE, architecture, vision)
    thinker |= {
        "model_type": THINKER,
        "position_id_per_seconds": int(family.vision_tokens_per_second),
        "seconds_per_chunk": family.audio_interleaving_seconds,
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder",
            "d_model": family.audio_hidden_size,
            "encoder_layers": family.audio_num_layers,
            "encoder_attention_heads": family.audio_num_attention_heads,
            "encoder_ffn_dim": family.audio_ffn_hidden_size,
            "num_mel_bins": family.audio_mel_bins,
            "n_window": family.audio_chunk_frames // 2,
            "output_dim": config.model.hidden_size,
        },
    }
    if family.has_talker:
        # What speaks is described by the file that is carried along.
        thinker = {"model_type": WHOLE, "torch_dtype": dtype, "thinker_config": thinker}
    return {"config.json": thinker}
