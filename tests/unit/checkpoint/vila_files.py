"""Random weights of transformers' own models as a VILA folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel


def write_vila(folder: Path, tie: bool, dtype: torch.dtype) -> None:
    """A tower, a projector and a language model, which ties its embeddings or does not."""
    torch.manual_seed(7)
    llm = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=70,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rope_theta=1000000.0,
            tie_word_embeddings=tie,
        )
    )
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
        )
    )
    for model, part in ((llm, "llm"), (tower, "vision_tower")):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.to(dtype).save_pretrained(folder / part)
    projector = {
        "layers.1.weight": torch.randn(64),
        "layers.1.bias": torch.randn(64),
        "layers.2.weight": torch.randn(32, 64),
        "layers.2.bias": torch.randn(32),
        "layers.4.weight": torch.randn(32, 32),
        "layers.4.bias": torch.randn(32),
    }
    (folder / "mm_projector").mkdir()
    save_file(
        {k: v.to(dtype) for k, v in projector.items()},
        folder / "mm_projector" / "model.safetensors",
    )
    (folder / "mm_projector" / "config.json").write_text(
        json.dumps({"mm_projector_type": "mlp_downsample"})
    )
    (folder / "vision_tower" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llava_llama", "mm_vision_select_layer": -2})
    )
