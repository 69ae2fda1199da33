"""vLLM serves exported Qwen-VL folders with its own encoder and processor, and says what
transformers says: the folder alone is enough to use what was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.functional.launches import ROOT
from tests.functional.qwen_vl_answers import CASES
from tests.qwen_vl_files import write_processor, write_tokenizer
from tests.tiny_qwen_vl import MODELS, PATCH, hugging_face
from tests.torchvision_beside import environment

TOLERANCE = 1e-4
"""Of log-probabilities, in fp32."""


@pytest.mark.parametrize("family", MODELS)
def test_answers_of_an_exported_folder(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    model = hugging_face(family, torch.float32, **write_tokenizer(folder))
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large biases would say the same everywhere
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    write_processor(folder, family, PATCH, {"min_pixels": 256, "max_pixels": 2000})
    for loader, saver, start, end in (
        ("hf", "megatron", "hf", "megatron"),
        ("megatron", "hf", "megatron", "out"),
    ):
        tool = [sys.executable, str(ROOT / "tools/checkpoint/convert.py"), "--loader", loader]
        tool += ["--saver", saver, "--load-dir", str(tmp_path / start)]
        subprocess.run([*tool, "--save-dir", str(tmp_path / end)], check=True, timeout=120)
    served, expected = (answers(tmp_path / "out", engine) for engine in ("vllm", "transformers"))
    for (kind, *_), ours, theirs in zip(CASES, served, expected, strict=True):
        assert ours["prompt"] == theirs["prompt"], kind
        assert ours["tokens"] == theirs["tokens"], kind
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=TOLERANCE), kind
    firsts = sorted(answer["logprobs"][0] for answer in served)
    assert min(b - a for a, b in pairwise(firsts)) > 10 * TOLERANCE


def answers(folder: Path, engine: str) -> list[dict[str, list[float]]]:
    """What an engine makes of each case, in a process of its own."""
    command = [sys.executable, "-m", "tests.functional.qwen_vl_answers", engine, str(folder)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert done.returncode == 0 and len(lines) == 1, done.stderr[-6000:]
    found: list[dict[str, list[float]]] = json.loads(lines[0].removeprefix("ANSWERS "))
    return found
