"""Answers to held-out clips, and the export that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_longrl.observability.metric_catalogue import OF_EVALUATION
from megatron_longrl.observability.metric_catalogue.evaluation import BENCHMARK
from tests.functional.launches import Arena, convert, read_rows

FRAMES = (4, 6)
"""Of clips of eight frames, of which they choose eight together."""


def test_a_sweep(arena: Arena, rl_run: Path, tmp_path: Path) -> None:
    """Two replicas share the rows, which are asked with two numbers of frames, with and without
    reasoning; every frame is encoded once for all of these."""
    output = tmp_path / "answers" / "heldout.json"
    template = tmp_path / "template.txt"
    template.write_text("{question} ?", encoding="utf-8")
    data = arena.data("heldout")
    flags = ("--load", rl_run, "--data", data, "--output", output)
    ways = ("--video-frames", *map(str, FRAMES), "--reasoning", "on", "off")
    asked: tuple[str | Path, ...] = ("--prompt-template", template, *ways)
    watched = {"WATCH_FRAMES": str(tmp_path / "frames")}
    told = arena.launch("evaluate", *flags, *asked, watched=watched).succeeded().output
    result = json.loads(output.read_text(encoding="utf-8"))
    rows = read_rows(data)
    assert result["samples"] == len(rows) == 16
    assert result["samples_skipped"] == result["unscored"] == 0
    found = [(way["frames"], way["mode"]) for way in result["ways"]]
    assert found == [(n, mode) for n in FRAMES for mode in ("reasoning", "direct")]
    for way in result["ways"]:
        answers = {
            str(answer["problem_id"]): answer
            for answer in result["answers"]
            if (answer["frames"], answer["mode"]) == (way["frames"], way["mode"])
        }
        assert sorted(answers) == sorted(str(row["problem_id"]) for row in rows)
        assert all(0 < answer["tokens"] <= 16 for answer in answers.values())
        assert way["accuracy"] == sum(a["correct"] for a in answers.values()) / 16
        assert 0 <= way["accuracy_low"] <= way["accuracy"] <= way["accuracy_high"] <= 1
        assert result["by_frames"][str(way["frames"])][way["mode"]] == way["accuracy"]
    assert result["accuracy"] == result["by_frames"]["6"]["reasoning"], "of most frames"
    told_of = {metric.key for metric in OF_EVALUATION.metrics if metric.when != BENCHMARK}
    keys = {key for key in told_of if not key.startswith("judge/")}
    assert set(result) == keys | {"answers"}, "docs/metrics.md has every figure"
    # One line a call of the encoder: every frame once, whatever the sweep.
    encoded = [
        frame
        for path in (tmp_path / "frames").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
        for frame in json.loads(line)["frames"]
    ]
    distinct = 8 * len({str(row["videos"]) for row in rows})
    assert len(encoded) == distinct
    counts = result["encoding"]
    assert counts["media"] == len(rows)
    assert counts["encoded"] == {"frames": distinct}
    assert counts["asked"] == {"frames": 2 * sum(FRAMES) * len(rows)}
    assert f"{distinct} frames of {counts['asked']['frames']} that were asked for" in told
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


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
