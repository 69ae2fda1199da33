"""vLLM serves exported Qwen-VL folders with its own encoder and processor, and says what
transformers says: the folder alone is enough to use what was trained."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.functional.launches import convert, run
from tests.functional.qwen_vl_answers import CASES
from tests.qwen_vl_files import write_processor, write_tokenizer
from tests.tiny_qwen_vl import MODELS, PATCH, hugging_face
from tests.torchvision_beside import python_path

TOLERANCE = 1e-4
"""Of log-probabilities, in fp32."""


@pytest.mark.full("tests/functional/test_served.py::test_greedy_tokens_of_an_exported_folder")
@pytest.mark.parametrize("family", MODELS)
def test_answers_of_an_exported_folder(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    model = hugging_face(family, torch.float32, **write_tokenizer(folder))
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large biases would say the same everywhere
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    write_processor(folder, family, PATCH, {"min_pixels": 256, "max_pixels": 2000})
    convert("hf", "megatron", tmp_path / "hf", tmp_path / "megatron")
    convert("megatron", "hf", tmp_path / "megatron", tmp_path / "out")
    served, expected = (answers(tmp_path / "out", engine) for engine in ("vllm", "transformers"))
    for (kind, *_), ours, theirs in zip(CASES, served, expected, strict=True):
        assert ours["prompt"] == theirs["prompt"], kind
        assert ours["tokens"] == theirs["tokens"], kind
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=TOLERANCE), kind
    firsts = sorted(answer["logprobs"][0] for answer in served)
    assert min(b - a for a, b in pairwise(firsts)) > 10 * TOLERANCE


def answers(folder: Path, engine: str) -> list[dict[str, list[float]]]:
    """What an engine makes of each case, in a process of its own."""
    written = folder.with_name(f"{engine}.json")
    command = ["-m", "tests.functional.qwen_vl_answers", engine, str(folder), str(written)]
    run(command, 1, 240, python_path()).succeeded()
    found: list[dict[str, list[float]]] = json.loads(written.read_text(encoding="utf-8"))
    return found
