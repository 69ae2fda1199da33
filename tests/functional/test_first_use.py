"""The README's commands with a stock folder and own clips: nothing else is given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests import real_tokenizers
from tests.functional.launches import metrics_of, run, write_rows
from tests.tiny_qwen_vl import qwen2_5_vl

SYMBOLS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
PIXELS = {
    "min_pixels": 256,
    "max_pixels": 4096,
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
QUESTION = "Which colour is it?\nA. red\nB. green"
SMALL = ("--rollout-max-tokens", "16", "--grpo-prompts-per-step", "2", "--grpo-group-size", "2")
"""What a test has no time for in full."""


def longrl(*arguments: str | Path, ranks: int = 1) -> str:
    command = ["-m", "megatron_longrl", *map(str, arguments)]
    return run(command, ranks, 240).succeeded().output


def write_clip(path: Path, channel: int, frames: int) -> None:
    """A film of one colour, at ten frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[..., channel] = 60 + 5 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL as transformers saves it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    real_tokenizers.write(folder, "qwen2.5-vl")
    ends = (folder / "generation_config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(symbol) for name, symbol in SYMBOLS.items()}
    torch.manual_seed(5)
    qwen2_5_vl(vocab_size=512, **ids).save_pretrained(folder)
    (folder / "generation_config.json").write_text(ends)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips with a question each."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(6):
        write_clip(folder / f"{number}.mp4", number % 2, 12 + number)
        rows.append({"problem": QUESTION, "answer": "AB"[number % 2], "videos": [f"{number}.mp4"]})
    return write_rows(folder / "train.jsonl", rows)


@pytest.fixture(scope="module")
def sft(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft") / "run"
    output = longrl(
        "train-sft", "--pretrained-checkpoint", model, "--train-data-path", data, "--save", folder
    )
    assert "Transformer Engine" not in output and "Warning" not in output
    (folder / "output.txt").write_text(output)
    return folder


def test_sft_needs_a_model_and_data_alone(sft: Path) -> None:
    """One epoch, frames at two a second, rows as long as needed, the model's own turns."""
    metrics = metrics_of(sft)
    assert [step["iteration"] for step in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(step["frames_encoded"] in (2, 4) for step in metrics)
    output = (sft / "output.txt").read_text()
    assert re.search(
        r"<\|im_start\|>user\n<\|vision_start\|><\|video_pad\|> x \d+<\|vision_end", output
    )
    assert "<answer>A</answer><|im_end|>" in output or "<answer>B</answer><|im_end|>" in output
    assert re.search(r"run: sft of qwen2_5_vl: \d+ K parameters, \d+ K of them trained", output)
    assert re.search(r"--seq-length \d+, of the longest of 6 rows", output)


def test_rl_goes_on_from_it_and_then_alone(sft: Path, data: Path, tmp_path: Path) -> None:
    """The run brings its model to RL; --load alone brings the whole recipe; so does evaluation."""
    mrsp = ("--multimodal-sequence-parallel-size", "2")
    start = ("--pretrained-checkpoint", sft, "--train-data-path", data, "--save", tmp_path / "grpo")
    longrl("train-rl", *start, *SMALL, *mrsp, "--train-iters", "1", ranks=2)
    output = longrl("train-rl", "--load", tmp_path / "grpo", "--train-iters", "2", ranks=2)
    assert "goes on with changes: train_iters: 1 -> 2" in output
    assert [step["iteration"] for step in metrics_of(tmp_path / "grpo")] == [1, 2]
    moved = (tmp_path / "grpo").rename(tmp_path / "moved")
    output = longrl("evaluate", "--load", moved, "--data", data, ranks=2)
    assert re.search(r"^accuracy +\d+\.\d%", output, re.MULTILINE)
    assert re.search(r"^chance +50\.0%", output, re.MULTILINE)


def test_a_missing_field_is_one_line(data: Path) -> None:
    done = run(["-m", "megatron_longrl", "train-rl", "--train-data-path", str(data)], 1, 60)
    assert done.status == 2
    assert done.output.splitlines() == done.errors
    assert done.errors[0].startswith("error: no model: give --pretrained-checkpoint FOLDER")
