"""The benchmark's points: what every variant computes, and what is reported; never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longrl.benchmark.variants import PROMPTS_PER_STEP, RESPONSE_TOKENS

ROOT = Path(__file__).resolve().parents[2]
FRAMES, GROUP = 4, 2


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/benchmark_mrsp.py"), "--output", str(folder)]
    command += ["--frames", str(FRAMES), "--group-size", str(GROUP), "--steps", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.full("tests/functional/test_frames.py::test_once_per_prompt_for_eight_responses")
def test_what_a_point_computes_and_reports(tmp_path: Path) -> None:
    ended = run(tmp_path, "--variants", "baseline", "longrl", "one-rank")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads((tmp_path / "benchmark_mrsp.json").read_text())["results"]
    assert (tmp_path / "benchmark_mrsp.png").stat().st_size > 0
    baseline, longrl, one = results
    assert [r["variant"] for r in results] == ["baseline", "longrl", "one-rank"]
    assert [len(r["peak_rss_mb"]) for r in results] == [2, 2, 1]
    # Each response's row in the rollout, in the passes for old values and reference, in the update.
    assert baseline["frames_encoded"] == PROMPTS_PER_STEP * FRAMES * 4 * GROUP
    assert longrl["frames_encoded"] == one["frames_encoded"] == PROMPTS_PER_STEP * FRAMES
    responses = PROMPTS_PER_STEP * GROUP * RESPONSE_TOKENS
    prompts = one["counts"]["update_tokens"] - responses
    assert baseline["counts"]["update_tokens"] == GROUP * prompts + responses
    # Rows are padded to a multiple of twice the ranks that may share them.
    padding = longrl["counts"]["update_tokens"] - one["counts"]["update_tokens"]
    assert 0 <= padding < PROMPTS_PER_STEP * 4
    assert baseline["counts"]["logprobs_tokens"] == 2 * baseline["counts"]["update_tokens"]
    for result in results:
        phases = sum(result["phases"].values())
        assert phases <= result["seconds_per_step"] * 1.01
        assert result["ratio_to_bound"] > 0


def test_too_little_memory_is_a_result(tmp_path: Path) -> None:
    ended = run(tmp_path, "--variants", "one-rank", "--memory-limit-mb", "300")
    assert ended.returncode == 1
    (result,) = json.loads((tmp_path / "benchmark_mrsp.json").read_text())["results"]
    assert "exit status" in result["error"], result
