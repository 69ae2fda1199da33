"""What Qwen2.5-Omni's processor and position rule of transformers make of prompts.

A program of ``test_omni_processors.py``, because they need torchvision:
``python -m tests.parity.omni_processors FOLDER``. FOLDER holds a processor, ``jobs.json``, what it
names, and gets ``answers.safetensors``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoProcessor

from tests.tiny_omni import thinker


def answer(processor: Any, model: Any, folder: Path, job: dict[str, Any]) -> dict[str, Tensor]:
    """Ids, positions, features and patches of a prompt."""
    with_sound = job["audio_in_video"]
    given: dict[str, Any] = {}
    if job["images"]:
        given["images"] = [Image.open(folder / name).convert("RGB") for name in job["images"]]
    if job["videos"]:
        given["videos"] = [np.load(folder / name) for name in job["videos"]]
        given["videos_kwargs"] = {
            "do_sample_frames": False,
            "fps": job["fps"],
            "use_audio_in_video": with_sound,
        }
    if job["sounds"]:
        given["audio"] = [np.load(folder / name) for name in job["sounds"]]
    kinds = [*["audio"] * job["audios"], *["image"] * len(job["images"])]
    kinds += ["video"] * len(job["videos"])
    content: list[dict[str, str]] = [{"type": kind, kind: "here"} for kind in kinds]
    content.append({"type": "text", "text": job["question"]})
    messages = [{"role": "user", "content": content}]
    # The template alone: the processor's method would open the files.
    text = processor.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    made = dict(processor(text=[text], return_tensors="pt", **given))
    lengths = None
    if "feature_attention_mask" in made:
        lengths = made.pop("feature_attention_mask").sum(-1)
    seconds = made.pop("video_second_per_grid", None)
    positions, _ = model.get_rope_index(
        made["input_ids"],
        image_grid_thw=made.get("image_grid_thw"),
        video_grid_thw=made.get("video_grid_thw"),
        attention_mask=made["attention_mask"],
        use_audio_in_video=with_sound,
        audio_seqlens=lengths,
        second_per_grids=None if seconds is None else torch.as_tensor(seconds),
    )
    found = {"input_ids": made["input_ids"][0], "positions": positions[:, 0].T}
    found |= {name: made[name] for name in ("pixel_values", "pixel_values_videos") if name in made}
    for number, frames in enumerate([] if lengths is None else lengths.tolist()):
        found[f"features/{number}"] = made["input_features"][number, :, :frames].T
    return {name: value.contiguous() for name, value in found.items()}


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    processor = AutoProcessor.from_pretrained(folder)
    model = thinker(**jobs["settings"])
    answers = {
        f"{name}/{key}": value
        for name, job in jobs["prompts"].items()
        for key, value in answer(processor, model, folder, job).items()
    }
    save_file(answers, folder / "answers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
