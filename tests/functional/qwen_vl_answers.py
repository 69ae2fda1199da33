"""Greedy answers of a Qwen-VL folder to text, images and videos, by vLLM or by transformers.

A program of ``test_served_qwen_vl.py``:
``python -m tests.functional.qwen_vl_answers ENGINE FOLDER FILE``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.qwen_vl_files import IMAGE, VIDEO

TOKENS = 8
Size = tuple[int, int]
CASES: tuple[tuple[str, list[Size], list[tuple[int, int, int]]], ...] = (
    ("Only text here?", [], []),
    (f"{IMAGE}What is this?", [(20, 28)], []),
    (f"{VIDEO}What happens?", [], [(8, 40, 24)]),
    (f"{VIDEO} and {VIDEO} differ?", [], [(6, 48, 32), (4, 24, 24)]),
    (f"{IMAGE}{VIDEO}Both?", [(33, 17)], [(6, 40, 40)]),
)
"""Prompts, images (height, width) and videos (frames, height, width)."""
RATE = 4.0
"""Frames per second; slower, transformers would have Qwen2.5-VL's text begin within the video."""


def media() -> list[tuple[str, list[Image.Image], list[np.ndarray[Any, Any]]]]:
    """The cases with pixels."""
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray[Any, Any]:
        return generator.integers(0, 255, (*shape, 3), dtype=np.uint8)

    return [
        (prompt, [Image.fromarray(noise(*size)) for size in images], [noise(*s) for s in videos])
        for prompt, images, videos in CASES
    ]


def times(video: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What a reader of files would say of a video."""
    frames = len(video)
    return {
        "total_num_frames": frames,
        "fps": RATE,
        "duration": frames / RATE,
        "frames_indices": list(range(frames)),
        "video_backend": "pyav",
    }


def by_vllm(folder: str) -> list[dict[str, Any]]:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=folder, dtype="float32", enforce_eager=True, max_model_len=512,
        kv_cache_memory_bytes=1 << 27, disable_log_stats=True,
        limit_mm_per_prompt={"image": 1, "video": 2},
    )  # fmt: skip
    requests: list[Any] = []
    for prompt, images, videos in media():
        shown = [(video, {**times(video), "do_sample_frames": False}) for video in videos]
        given: dict[str, Any] = {"image": images} if images else {}
        if shown:
            given["video"] = shown
        requests.append({"prompt": prompt, "multi_modal_data": given} if given else prompt)
    greedy = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=0
    )
    answers = []
    for output in engine.generate(requests, greedy, use_tqdm=False):
        (response,) = output.outputs
        tokens = list(response.token_ids)
        scores = [
            found[i].logprob for found, i in zip(response.logprobs or [], tokens, strict=True)
        ]
        answers.append({"prompt": output.prompt_token_ids, "tokens": tokens, "logprobs": scores})
    return answers


def by_transformers(folder: str) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.video_utils import VideoMetadata

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt, images, videos in media():
        given: dict[str, Any] = {"images": images} if images else {}
        if videos:
            told = [VideoMetadata(**times(video)) for video in videos]
            given |= {"videos": videos, "video_metadata": told, "do_sample_frames": False}
        inputs = processor(text=[prompt], return_tensors="pt", **given)
        length = inputs["input_ids"].shape[1]
        made = model.generate(
            **inputs, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            pad_token_id=0, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        tokens = made.sequences[0, length:]
        scores = torch.cat(made.logits).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        answers.append(
            {
                "prompt": inputs["input_ids"][0].tolist(),
                "tokens": tokens.tolist(),
                "logprobs": scores.tolist(),
            }
        )
    return answers


if __name__ == "__main__":
    engine, folder, written = sys.argv[1:]
    made = {"vllm": by_vllm, "transformers": by_transformers}[engine](folder)
    Path(written).write_text(json.dumps(made), encoding="utf-8")
