"""Checkpoints of the text families compute here what transformers computes, and come back as they
went."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_longrl.checkpoint.hf import config_from_hf
from megatron_longrl.checkpoint.hf_writer import HfFolderWriter
from megatron_longrl.checkpoint.mapping import export_named_tensors
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from tests.parity.comparison import assert_close, loaded, logits

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
    config, _, model = loaded(tmp_path / "hf")
    assert config.model_family == kind
    tokens = torch.randint(0, VOCABULARY, (2, 40))
    positions = (torch.arange(40) + 300).expand(2, -1)
    expected = theirs(input_ids=tokens, position_ids=positions).logits
    assert_close(logits(model.gpt, tokens, positions)[..., :VOCABULARY], expected)


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
