"""vLLM serves exported folders, and says what transformers says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.functional.launches import convert
from tests.runner.tiers import full_only

PROMPTS = [[5, 9, 2, 40, 7, 7, 31], [3, 60, 22]]
TOKENS = 8

SERVE = """
import json, os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR"}
from vllm import LLM, SamplingParams
folder, prompts, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
engine = LLM(
    model=folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
    max_model_len=128, kv_cache_memory_bytes=1 << 26, disable_log_stats=True,
)
greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False)
print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.mark.parametrize(
    "family",
    full_only(
        "tests/functional/test_served.py::test_greedy_tokens_of_an_exported_folder",
        ["qwen2", "qwen3", "llama"],
        ["qwen3"],
    ),
)
def test_greedy_tokens_of_an_exported_folder(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(2)
    settings = AutoConfig.for_model(
        family,
        vocab_size=128,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=family == "qwen3",
    )
    model = AutoModelForCausalLM.from_config(settings).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large biases would say the same everywhere
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "hf")
    convert("hf", "megatron", tmp_path / "hf", tmp_path / "megatron")
    convert("megatron", "hf", tmp_path / "megatron", tmp_path / "out")
    command = [sys.executable, "-c", SERVE, str(tmp_path / "out"), json.dumps(PROMPTS)]
    served = subprocess.run(
        [*command, str(TOKENS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    (line,) = [x for x in served.stdout.splitlines() if x.startswith("TOKENS ")] or [served.stderr]
    found = json.loads(line.removeprefix("TOKENS "))
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS,
            min_new_tokens=TOKENS, pad_token_id=0,
        )  # fmt: skip
        assert tokens == expected[0, len(prompt) :].tolist()
    assert len({tuple(tokens) for tokens in found}) == len(PROMPTS)
