"""Checkpoints of the text families compute here what transformers computes, and come back as they
went."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_longrl.conversion.hf import config_from_hf, load_hf_weights
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.mapping import export_named_tensors
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model
from tests.parity.comparison import TOLERANCE, assert_close, loaded, logits


def lengthened(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 500.0, "factor": 8.0, **settings}


ORIGINAL = {"original_max_position_embeddings": 64}
VOCABULARY = 131  # divisible by nothing
SIZES = {
    "vocab_size": VOCABULARY,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
# 28 query heads over 4 of keys and values, as Qwen2-7B has.
HEADS = {"num_attention_heads": 28, "num_key_value_heads": 4}
QWEN2 = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
QWEN3 = {**QWEN2, "head_dim": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2, tied": ("qwen2", {"hidden_size": 112, "tie_word_embeddings": True, **HEADS}),
    "Qwen2, untied": ("qwen2", {"hidden_size": 112, "tie_word_embeddings": False, **HEADS}),
    "Qwen3, tied": (
        "qwen3",
        {"hidden_size": 48, "head_dim": 16, "tie_word_embeddings": True, **HEADS},
    ),
    "Qwen3, untied": (
        "qwen3",
        {
            "hidden_size": 48,
            "head_dim": 8,
            "tie_word_embeddings": False,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
    "Llama": (
        "llama",
        {"hidden_size": 112, "num_attention_heads": 14, "num_key_value_heads": 14},
    ),
    "Llama 3.1": (
        "llama",
        {
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "Qwen2, linear": ("qwen2", {**QWEN2, "rope_parameters": lengthened("linear")}),
    # Beyond the context nothing is compared: there transformers looks at the longest row.
    "Qwen2, dynamic": ("qwen2", {**QWEN2, "rope_parameters": lengthened("dynamic")}),
    "Qwen2, YaRN": ("qwen2", {**QWEN2, "rope_parameters": lengthened("yarn", **ORIGINAL)}),
    "Qwen3, YaRN with all settings": (
        "qwen3",
        {
            **QWEN3,
            "rope_parameters": lengthened(
                "yarn", **ORIGINAL, beta_fast=8, beta_slow=2, attention_factor=1.3, truncate=False
            ),
        },
    ),
    "Llama, YaRN with two magnitudes": (
        "llama",
        {
            **QWEN2,
            "rope_parameters": lengthened("yarn", **ORIGINAL, mscale=0.7, mscale_all_dim=1.1),
        },
    ),
    # Of the whole context, where none is written.
    "Qwen2, YaRN of the context": ("qwen2", {**QWEN2, "rope_parameters": lengthened("yarn")}),
}


def hugging_face(kind: str, sizes: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model of random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(11)
    settings = AutoConfig.for_model(kind, **{**SIZES, "rope_parameters": ROPE, **sizes})
    model = AutoModelForCausalLM.from_config(settings).eval()
    for parameter in model.parameters():
        # Biases and norms as well, or an exchange of two of them would not show.
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    for name, parameter in model.named_parameters():
        if "q_proj.weight" in name or "q_norm" in name:
            parameter.data *= 4  # attention that tells places apart
    return model.to(dtype)


ROPE = {"rope_type": "default", "rope_theta": 50000.0}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits(name, tmp_path):
    kind, sizes = CASES[name]
    theirs = hugging_face(kind, sizes, torch.float32)
    theirs.save_pretrained(tmp_path / "hf")
    config, groups, model = loaded(tmp_path / "hf")
    assert config.model.family == kind
    tokens = torch.randint(0, VOCABULARY, (2, 40))
    # Far apart, so that slow wavelengths turn, too; dynamic scaling begins beyond the context.
    stride = 12 if config.rotary.rope_scaling_type == "dynamic" else 40
    positions = (stride * torch.arange(40)).expand(2, -1)
    expected = theirs(input_ids=tokens, position_ids=positions).logits
    ours = logits(model.policy.module, tokens, positions)[..., :VOCABULARY]
    assert_close(ours, expected)
    if (
        config.rotary.rope_scaling_factor is not None
        and config.rotary.rope_scaling_type != "dynamic"
    ):
        unscaled = build_model(config.replace(rope_scaling_factor=None), groups, train=False)
        load_hf_weights(tmp_path / "hf", unscaled.modules, config, groups)
        plain = logits(unscaled.policy.module, tokens, positions)[..., :VOCABULARY]
        assert (plain - expected).abs().max() > 20 * TOLERANCE, "the scaling must show"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_bit_exact(name, dtype, tmp_path):
    kind, sizes = CASES[name]
    source, back = tmp_path / "hf", tmp_path / "back"
    hugging_face(kind, sizes, dtype).save_pretrained(source)
    config, groups, model = loaded(source, bf16=dtype is torch.bfloat16)
    with HfFolderWriter(back, config, max_shard_bytes=50_000) as writer:
        for tensor_name, tensor in export_named_tensors(model.modules, config, groups):
            writer.add(tensor_name, tensor)
    assert (back / "model.safetensors.index.json").exists()
    before = load_file(source / "model.safetensors")
    after: dict[str, torch.Tensor] = {}
    for file in back.glob("*.safetensors"):
        after |= load_file(file)
    assert before.keys() == after.keys()
    for tensor_name, tensor in before.items():
        assert after[tensor_name].dtype == dtype
        assert torch.equal(tensor, after[tensor_name]), tensor_name
    assert config_from_hf(back) == config_from_hf(source)
