"""Tiny models of random weights as their publishers lay them out: the weights and settings that
transformers saves, the tokenizer's real format, the processor's settings, what ends a response.

An NVILA folder is laid out as VILA's own code saves it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests import real_tokenizers, tiny_omni
from tests.qwen_vl_files import MEANS
from tests.qwen_vl_files import SPECIAL as SYMBOLS
from tests.tiny_qwen_vl import MODELS, PATCH, TEXT

VOCABULARY = 320
"""Rows of word embeddings, of which the last have no token, as in published checkpoints."""

KINDS = {
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen2_5_omni": "qwen2.5-omni",
    "llama": "llama3",
    "qwen2": "qwen2.5",
    "nvila": "nvila",
}
"""Family -> kind of the tokenizer."""

SEES = ("qwen2_5_vl", "qwen3_vl", "qwen2_5_omni", "nvila")
"""Those with a vision tower."""

PIXELS = {"shortest_edge": 256, "longest_edge": 4096}
OMNI_PATCH = 14
"""Its processor never takes fewer pixels of a frame than 128 x 28 x 28."""
ENDS_OFTEN = 3.0
"""How much longer the rows of end tokens in the output layer are: random models never end."""


def write(folder: Path, family: str) -> Path:
    """A folder of one of :data:`KINDS`; its greedy responses end by each of its end tokens."""
    torch.manual_seed(5)
    writers: dict[str, Callable[[Path], None]] = {
        "nvila": _write_nvila,
        "qwen2_5_omni": _write_omni,
    }
    if family in MODELS:
        writers[family] = lambda place: _write_qwen_vl(place, family)
    writers.get(family, lambda place: _write_text(place, family))(folder)
    return folder


def language_folder(folder: Path, family: str) -> Path:
    """Where the language model and the tokenizer are."""
    return folder / "llm" if family == "nvila" else folder


def _write_text(folder: Path, family: str) -> None:
    ids = _write_tokenizer(folder, family)
    settings = AutoConfig.for_model(
        "qwen2" if family == "nvila" else family,
        **{**TEXT, "max_position_embeddings": 2048, **ids},
        vocab_size=VOCABULARY,
    )
    _save(AutoModelForCausalLM.from_config(settings), folder)


def _write_qwen_vl(folder: Path, family: str) -> None:
    _write_tokenizer(folder, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(symbol) for name, symbol in SYMBOLS.items()}
    _save(MODELS[family](vocab_size=VOCABULARY, **ids), folder)
    shared = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2, **MEANS[family]}
    name = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[family]
    videos = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}[family]
    processor = {
        "image_processor": {
            "image_processor_type": "Qwen2VLImageProcessor", **shared, "size": PIXELS
        },
        "processor_class": name,
        "video_processor": {"video_processor_type": videos, **shared, "size": PIXELS},
    }  # fmt: skip
    write_json(folder / "processor_config.json", processor)


def _write_omni(folder: Path) -> None:
    """A whole checkpoint, whose other parts are there in name."""
    _write_tokenizer(folder, "qwen2_5_omni")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    symbols = tiny_omni.SYMBOLS.items()
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(s) for name, s in symbols}
    _save(tiny_omni.thinker(vocab_size=VOCABULARY, patch=OMNI_PATCH, **ids), folder)
    tensors = load_file(folder / "model.safetensors")
    whole = {f"thinker.{name}": tensor for name, tensor in tensors.items()}
    whole["talker.codec_head.weight"] = torch.randn(3, 2)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    thinker = json.loads((folder / "config.json").read_text())
    settings = {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "thinker_config": thinker,
        "talker_config": {"model_type": "qwen2_5_omni_talker"},
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
    }
    write_json(folder / "config.json", settings)
    shared = {
        "patch_size": OMNI_PATCH, "temporal_patch_size": 2, "merge_size": 2, **MEANS["qwen2_5_vl"]
    }  # fmt: skip
    processor = {
        "image_processor": {
            "image_processor_type": "Qwen2VLImageProcessor", **shared, "size": PIXELS
        },
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", **shared},
        "feature_extractor": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": tiny_omni.BINS,
            "chunk_length": 30,
            "return_attention_mask": True,
        },
        "processor_class": "Qwen2_5OmniProcessor",
    }  # fmt: skip
    write_json(folder / "processor_config.json", processor)


def _write_nvila(folder: Path) -> None:
    _write_text(folder / "llm", "nvila")
    tower = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    )
    _save(SiglipVisionModel(tower), folder / "vision_tower")
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": 28, "width": 28},
    }
    write_json(folder / "vision_tower" / "preprocessor_config.json", processor)
    (folder / "mm_projector").mkdir()
    width, joined = TEXT["hidden_size"], 4 * tower.hidden_size
    projector = {
        "layers.1.weight": torch.ones(joined),
        "layers.1.bias": torch.zeros(joined),
        "layers.2.weight": 0.2 * torch.randn(width, joined),
        "layers.2.bias": torch.zeros(width),
        "layers.4.weight": 0.2 * torch.randn(width, width),
        "layers.4.bias": torch.zeros(width),
    }
    save_file(projector, folder / "mm_projector" / "model.safetensors", {"format": "pt"})
    kind = {"model_type": "v2l_projector", "mm_projector_type": "mlp_downsample"}
    write_json(folder / "mm_projector" / "config.json", kind)
    parts = {
        "llm_cfg": "llm",
        "vision_tower_cfg": "vision_tower",
        "mm_projector_cfg": "mm_projector",
    }
    settings = {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        **{
            name: json.loads((folder / part / "config.json").read_text())
            for name, part in parts.items()
        },
        "hidden_size": width,
        "image_aspect_ratio": "dynamic",
        "image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"},
        "video_encoder": {"_target_": "llava.model.encoders.BasicVideoEncoder"},
        "mm_projector": "mlp_downsample",
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "num_video_frames": 8,
        "model_dtype": "torch.float32",
    }
    write_json(folder / "config.json", settings)


def _write_tokenizer(folder: Path, family: str) -> dict[str, Any]:
    """With the settings of ``generate``; returns the special tokens as ``config.json`` has them."""
    real_tokenizers.write(folder, KINDS[family])
    ids = json.loads((folder / "generation_config.json").read_text())
    return {name: ids[name] for name in ("bos_token_id", "eos_token_id") if name in ids}


def _save(model: Any, folder: Path) -> None:
    """The model, whose file about ``generate`` is the tokenizer's."""
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large biases would say the same everywhere
            torch.nn.init.normal_(parameter, std=0.2)
    ends = folder / "generation_config.json"
    if not ends.exists():  # of a tower
        model.save_pretrained(folder)
        return
    told, tokens = ends.read_text(), len(AutoTokenizer.from_pretrained(folder))
    with torch.no_grad():
        output = model.get_output_embeddings().weight
        output[json.loads(told)["eos_token_id"]] *= ENDS_OFTEN
        output[tokens:] = 0.0  # generate would draw what is no token
    model.save_pretrained(folder)
    ends.write_text(told)


def write_json(path: Path, settings: dict[str, Any]) -> None:
    """A file of settings."""
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
