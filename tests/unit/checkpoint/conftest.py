"""A tiny VILA model on one rank, and a folder of random weights in Hugging Face's own format."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_longrl.config import Config
from tests.tiny_vila import TINY


@pytest.fixture
def tiny():
    """Makes configurations of the tiny model."""

    def make(**changes: object) -> Config:
        return Config(**{**TINY, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def groups():
    """A world of one rank."""
    from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
    from megatron_longrl.platforms import platform

    platform.prepare()
    yield init_parallel(Config(**TINY))  # type: ignore[arg-type]
    destroy_parallel()


@pytest.fixture
def build(groups):
    """Builds models with random weights."""
    from megatron_longrl.training.model import build_model

    def make(config: Config, train: bool = True):
        return build_model(config, groups, train=train)

    return make


CONVERT = Path(__file__).parents[3] / "tools/checkpoint/convert.py"


@pytest.fixture
def convert(capsys):
    """The converter in this process, which spares its imports."""
    spec = importlib.util.spec_from_file_location("convert", CONVERT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*flags: object) -> tuple[int, str, str]:
        capsys.readouterr()  # What making the folders has said.
        status = module.main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def vila_folder(tmp_path):
    """Writes random weights of transformers' own models as a VILA folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

    def make(tie: bool = True, dtype: torch.dtype = torch.float32, name: str = "vila"):
        torch.manual_seed(7)
        folder = tmp_path / name
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
        return folder

    return make
