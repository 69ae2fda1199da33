"""A small configuration that keeps every rule, and recipes made from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_longrl.cli.load import load_config
from megatron_longrl.config import Config

MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "vision_image_size": 48,
    "vision_patch_size": 12,
    "vision_hidden_size": 32,
    "vision_num_layers": 3,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 64,
    "seq_length": 512,
}
RUN: dict[str, Any] = {
    "train_data_path": ["train.jsonl"],
    "tokenizer_model": "tokenizer.model",
    "train_iters": 20,
    "lr": 1e-4,
    "grpo_prompts_per_step": 8,
    "rollout_max_tokens": 16,
    "load": "runs/sft",
    "data": ["heldout.jsonl"],
    "output": "answers.json",
}


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules look at what torchrun announces; tests say it themselves."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """A valid configuration with some fields changed."""
    return lambda **changes: Config.of({**MODEL, **RUN, **changes})


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A valid recipe on disk."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**MODEL, **RUN}))
    return path


@pytest.fixture
def load(recipe: Path) -> Callable[..., Config]:
    """Load the recipe for RL with more flags."""
    return lambda *flags: load_config(["--config", str(recipe), *flags], "rl")
