"""From a Hugging Face folder through training and back, as a user of other families than VILA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_longrl.data.tokenizer import train_sentencepiece
from megatron_longrl.models.hf_reference import load_model
from tests.distributed.families import write_family
from tests.functional.launches import CP2, ROOT, convert, curve, metrics_of, run, write_rows
from tests.runner.tiers import full_only

SOUND = {"qwen2_5_omni": ("--audio-in-video", "--missing-audio", "silence")}
"""Further flags of families that hear."""
STEPS = ("--train-iters", "12", "--lr", "3e-3", "--seq-length", "512", "--micro-batch-size", "2")


def train(program: str, *flags: str | Path, ranks: int = 2) -> str:
    command = ["-m", f"megatron_longrl.{program}", "--tokenizer-type", "SentencePieceTokenizer"]
    return run([*command, *map(str, flags)], ranks, 240).succeeded().output


@pytest.mark.parametrize(
    "family",
    full_only(
        "tests/functional/test_families.py::test_sft_of_a_folder_with_towers",
        ["qwen2_5_vl", "qwen3_vl", "qwen2_5_omni"],
        ["qwen3_vl"],
    ),
)
def test_sft_of_a_folder_with_towers(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    output = train(
        "train_sft",
        *STEPS,
        *CP2,
        *("--tokenizer-model", tmp_path / "tok.model", "--train-data-path", tmp_path),
        *("--pretrained-checkpoint", tmp_path / "hf", "--video-max-pixels", "1600"),
        *("--video-min-pixels", "256", "--image-min-pixels", "256", "--save", tmp_path / "run"),
        *SOUND.get(family, ()),
        *("--global-batch-size", "4", "--save-interval", "12"),
    )
    losses = curve(metrics_of(tmp_path / "run"), "lm loss")
    assert len(losses) == 12 and losses[-1] < 0.85 * losses[0], output[-2000:]
    convert("megatron", f"hf_{family}", tmp_path / "run", tmp_path / "out")
    before, after = (load_model(tmp_path / name).state_dict() for name in ("hf", "out"))
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before), "everything is trained, tower and all"
    compare = [str(ROOT / "tools/checkpoint/verify.py"), "--megatron-dir", str(tmp_path / "run")]
    film = "0-0.mp4" if family in SOUND else "0-0.webm"
    media = ["--video", str(tmp_path / film), "--image", str(tmp_path / "2-0.png")]
    if family in SOUND:
        media += ["--audio", str(tmp_path / "3-0.flac"), "--audio-in-video"]
    said = run([*compare, "--hf-dir", str(tmp_path / "out"), *media], 1, 120).succeeded().output
    assert "largest difference" in said
    different = run([*compare, "--hf-dir", str(tmp_path / "hf"), *media], 1, 120)
    assert different.status == 1, "the weights before training"


def test_rl_of_a_text_model(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rows = [
        {"problem_id": k, "problem": f"Is {k} even?", "answer": "A", "data_type": "text"}
        for k in range(8)
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    train_sentencepiece([json.dumps(row) for row in rows], tmp_path / "tok", 300)
    settings = Qwen3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # not the width of a head's share
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(settings).save_pretrained(tmp_path / "hf")
    train(
        "train_rl",
        *("--tokenizer-model", tmp_path / "tok.model", "--train-data-path", tmp_path),
        *("--pretrained-checkpoint", tmp_path / "hf", "--save", tmp_path / "run"),
        *("--train-iters", "2", "--lr", "1e-3", "--seq-length", "128"),
        *("--grpo-prompts-per-step", "4", "--grpo-group-size", "2", "--rollout-max-tokens", "8"),
        *("--tensor-model-parallel-size", "2", "--rollout-memory-gib", "0.05"),
    )
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 2
    assert max(curve(steps, "rollout_corr/logprob_diff_mean")) < 1e-4


@pytest.mark.full(
    "tests/distributed/test_rollout_parity.py::test_videos_and_images_at_positions_of_their_own"
)
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_omni"])
def test_rl_of_a_folder_with_towers(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    train(
        "train_rl",
        *CP2,
        *("--tokenizer-model", tmp_path / "tok.model", "--train-data-path", tmp_path),
        *("--pretrained-checkpoint", tmp_path / "hf", "--save", tmp_path / "run"),
        *(
            "--train-iters",
            "2",
            "--lr",
            "1e-4",
            "--seq-length",
            "512",
            "--rollout-memory-gib",
            "0.1",
        ),
        *("--grpo-prompts-per-step", "4", "--grpo-group-size", "2", "--rollout-max-tokens", "8"),
        *("--video-max-pixels", "1600", "--video-min-pixels", "256", "--image-min-pixels", "256"),
        *SOUND.get(family, ()),
    )
    steps = metrics_of(tmp_path / "run")
    assert len(steps) == 2
    if family in SOUND:
        assert curve(steps, "units_encoded/audio") == [9, 9], "each once, by all ranks"
    assert max(curve(steps, "rollout_corr/logprob_diff_mean")) < 1e-4
