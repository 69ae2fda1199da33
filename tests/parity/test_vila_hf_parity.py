"""A VILA folder of random weights computes here what Hugging Face's own classes compute.

Language model: transformers' Qwen2ForCausalLM. Tower: transformers' SiglipVisionModel. The
projector is not in transformers: its twin below is written from its description, in float64.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import config_from_hf, load_hf_weights
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model
from tests.parity.comparison import assert_close, logits

VOCABULARY = 131  # divisible by nothing


@pytest.fixture(
    scope="module",
    params=[(True, 28, "qwen2"), (False, 35, "qwen2"), (False, 28, "llama")],
    ids=["tied", "untied, odd grid", "Llama"],
)
def both(request, tmp_path_factory):
    """Hugging Face's modules, and ours with the weights of the folder that they were saved to."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    tie, image_size, language = request.param
    folder = tmp_path_factory.mktemp("vila")
    torch.manual_seed(11)
    llm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            language,
            vocab_size=VOCABULARY,
            hidden_size=112,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rope_theta=50000.0,
            rms_norm_eps=1e-5,
            tie_word_embeddings=tie,
        )
    ).eval()
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=7,
        )
    ).eval()
    projector = {
        "layers.1.weight": (192,),
        "layers.1.bias": (192,),
        "layers.2.weight": (112, 192),
        "layers.2.bias": (112,),
        "layers.4.weight": (112, 112),
        "layers.4.bias": (112,),
    }
    for model, part in ((llm, "llm"), (tower, "vision_tower")):
        for parameter in model.parameters():
            # Biases and norms as well, or an exchange of two of them would not show.
            torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
        model.save_pretrained(folder / part)
    weights = {name: torch.randn(shape) * 0.2 + 0.1 for name, shape in projector.items()}
    (folder / "mm_projector").mkdir()
    save_file(weights, folder / "mm_projector/model.safetensors")
    (folder / "mm_projector/config.json").write_text('{"mm_projector_type": "mlp_downsample"}')
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llava_llama", "mm_vision_select_layer": -2})
    )

    platform.prepare()
    config = Config.of({**config_from_hf(folder), "seq_length": 512})
    groups = init_parallel(config.parallel, config.model)
    model = build_model(config, groups, train=False)
    load_hf_weights(folder, model.modules, config, groups)
    yield llm, tower, weights, model
    destroy_parallel()


@pytest.mark.parametrize("start", [0, 300])
@torch.no_grad()
def test_logits(both, start):
    llm, _, _, model = both
    tokens = torch.randint(0, VOCABULARY, (2, 40))
    positions = (torch.arange(40) + start).expand(2, -1)
    theirs = llm(input_ids=tokens, position_ids=positions).logits
    assert_close(logits(model.policy.module, tokens, positions)[..., :VOCABULARY], theirs)


@torch.no_grad()
def test_features_of_the_selected_layer(both):
    _, tower, _, model = both
    side = tower.config.image_size
    pixels = torch.rand(3, 3, side, side) * 2 - 1
    theirs = tower(pixels, output_hidden_states=True).hidden_states[-2]
    assert_close(model.encoders["encoder"].module.vision_tower(pixels), theirs)


@torch.no_grad()
def test_projector(both):
    _, tower, weights, model = both
    grid = tower.config.image_size // 7
    features = torch.randn(2, grid * grid, 48)
    theirs = torch.stack([projector_twin(frame, grid, weights) for frame in features.double()])
    assert_close(model.encoders["encoder"].module.projector(features), theirs.float())


def projector_twin(
    features: torch.Tensor, grid: int, weights: dict[str, torch.Tensor]
) -> torch.Tensor:
    """mlp_downsample: 2x2 patches side by side, column after column, then norm, linear, GELU,
    linear.

    A patch outside an odd grid is zero.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}

    def patch(row: int, column: int) -> torch.Tensor:
        inside = row < grid and column < grid
        return features[row * grid + column] if inside else torch.zeros(48, dtype=torch.double)

    tokens = []
    for column in range(0, grid, 2):
        for row in range(0, grid, 2):
            x = torch.cat([patch(row + r, column + c) for r in (0, 1) for c in (0, 1)])
            x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
            x = x * w["layers.1.weight"] + w["layers.1.bias"]
            x = w["layers.2.weight"] @ x + w["layers.2.bias"]
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
            tokens.append(w["layers.4.weight"] @ x + w["layers.4.bias"])
    return torch.stack(tokens)
