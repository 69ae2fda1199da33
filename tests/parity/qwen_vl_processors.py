"""What the Qwen-VL processors of transformers make of videos and images.

A program of ``test_qwen_vl_processors.py``, because they need torchvision:
``python -m tests.parity.qwen_vl_processors FOLDER``. FOLDER holds ``jobs.json``, what it names, and
gets ``answers.safetensors``.
"""

from __future__ import annotations

import functools
import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from tests.qwen_vl_files import IMAGE, VIDEO
from tests.tiny_qwen_vl import hugging_face

model_of = functools.cache(hugging_face)
SOURCES = {"qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl"}


def sizes(family: str, jobs: list[dict[str, Any]]) -> Tensor:
    """Heights and widths of resized frames."""
    source = SOURCES[family]
    module = import_module(f"transformers.models.{source}.video_processing_{source}")
    return torch.tensor([module.smart_resize(**job[family]) for job in jobs])


def load(family: str, folder: Path, told: dict[str, Any]) -> tuple[Any, VideoMetadata]:
    """The frames that were taken of a video, and their numbers at its rate."""
    frames = np.load(folder / told["file"])[told["taken"][family]]
    total, rate = told["total"], told["rate"]
    return frames, VideoMetadata(
        total_num_frames=total,
        fps=rate,
        duration=total / rate,
        frames_indices=told["places"][family],
    )


def prompt(family: str, processor: Any, folder: Path, job: dict[str, Any]) -> dict[str, Tensor]:
    """Ids, positions, grids and patches of images and videos, one behind the other."""
    given: dict[str, Any] = {}
    if job["images"]:
        given["images"] = [Image.open(folder / name).convert("RGB") for name in job["images"]]
    if job["videos"]:
        videos = [load(family, folder, told) for told in job["videos"]]
        given["videos"], given["video_metadata"] = zip(*videos, strict=True)
        given = {name: list(value) for name, value in given.items()}
        given["do_sample_frames"] = False
    text = IMAGE * len(job["images"]) + VIDEO * len(job["videos"])
    made = dict(processor(text=[text], return_tensors="pt", return_mm_token_type_ids=True, **given))
    made["second_per_grid_ts"] = torch.as_tensor(made.get("second_per_grid_ts", []))
    positions = positions_of_vllm if family == "qwen2_5_vl" else positions_of_transformers
    made["positions"] = positions(family, made)
    return {name: value.contiguous() for name, value in made.items()}


def positions_of_transformers(family: str, made: dict[str, Any]) -> Tensor:
    """[P, 3]."""
    grids = {name: made[name] for name in made if name.endswith("grid_thw")}
    find = model_of(family).model.get_rope_index
    found: Tensor = find(made["input_ids"], made["mm_token_type_ids"], **grids)[0]
    return found[:, 0].T


def positions_of_vllm(family: str, made: dict[str, Any]) -> Tensor:
    """[P, 3] by vLLM's own model, because transformers forgets how long a Qwen2.5-VL video is."""
    kinds = made["mm_token_type_ids"][0]
    features = []
    for number, kind in ((1, "image"), (2, "video")):
        begins = torch.where(torch.diff(kinds == number, prepend=torch.zeros(1).bool()))[0][::2]
        for place, (start, grid) in enumerate(
            zip(begins.tolist(), made.get(f"{kind}_grid_thw", []), strict=True)
        ):
            data = {f"{kind}_grid_thw": SimpleNamespace(data=grid)}
            if kind == "video":
                seconds = made["second_per_grid_ts"][place]
                data["second_per_grid_ts"] = SimpleNamespace(data=seconds)
            where = SimpleNamespace(offset=start)
            features.append(SimpleNamespace(modality=kind, data=data, mm_position=where))
    model: Any = SimpleNamespace(config=model_of(family).config)
    theirs = Qwen2_5_VLForConditionalGeneration
    model.iter_mm_grid_thw = functools.partial(theirs.iter_mm_grid_thw, model)
    found, _ = theirs.get_mrope_input_positions(model, made["input_ids"][0].tolist(), features)
    return found.T


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    answers = {}
    for family in SOURCES:
        processor = AutoProcessor.from_pretrained(folder / family)
        answers[f"{family}/sizes"] = sizes(family, jobs["sizes"])
        for number, job in enumerate(jobs["prompts"]):
            for name, value in prompt(family, processor, folder, job).items():
                answers[f"{family}/prompts/{number}/{name}"] = value
    save_file(answers, folder / "answers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
