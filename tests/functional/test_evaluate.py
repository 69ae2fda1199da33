"""Answers to held-out clips, and the export that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_longrl.observability.metric_catalogue import OF_EVALUATION
from tests.functional.launches import Arena, convert, read_rows


def test_evaluate(arena: Arena, rl_run: Path, tmp_path: Path) -> None:
    """Two replicas share the rows."""
    output = tmp_path / "answers" / "heldout.json"
    data = arena.data("heldout")
    flags = ("--load", rl_run, "--data", data, "--output", output)
    arena.launch("evaluate", *flags).succeeded()
    result = json.loads(output.read_text(encoding="utf-8"))
    rows = read_rows(data)
    answers = {str(answer["problem_id"]): answer for answer in result["answers"]}
    assert result["samples"] == len(result["answers"]) == len(rows) == 16
    assert sorted(answers) == sorted(str(row["problem_id"]) for row in rows)
    assert all(0 < answer["tokens"] <= 16 for answer in answers.values())
    assert result["accuracy"] == sum(a["correct"] for a in answers.values()) / 16
    assert 0 <= result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"] <= 1
    assert result["samples_skipped"] == 0
    told = {metric.key for metric in OF_EVALUATION.metrics if not metric.key.startswith("judge/")}
    assert set(result) == told | {"answers"}, "docs/metrics.md has every figure"


def test_export_to_hugging_face(rl_run: Path, tmp_path: Path) -> None:
    convert("megatron", "hf_vila", rl_run, tmp_path / "hf")
    for part in ("llm", "vision_tower", "mm_projector"):
        assert (tmp_path / "hf" / part / "config.json").is_file(), part
    transformers = pytest.importorskip("transformers")
    model, loading = transformers.Qwen2ForCausalLM.from_pretrained(
        tmp_path / "hf" / "llm", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    logits = model(torch.arange(3, 13)[None]).logits
    assert logits.shape == (1, 10, model.config.vocab_size)
    assert torch.isfinite(logits).all()
