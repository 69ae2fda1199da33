"""A prompt with videos and images through the whole Qwen-VL model, against transformers.

How it is laid out is compared in test_qwen_vl_processors.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from megatron_longrl.cli.conversion.comparison import difference, model_logits
from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import SentencePieceTokenizer
from megatron_longrl.models.hf_reference import reference_logits
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from tests.parity.comparison import TOLERANCE, assert_close, loaded
from tests.tiny_qwen_vl import MODELS, hugging_face
from tests.visual_media import visual

PIXELS = {"video_min_pixels": 256, "video_max_pixels": 2000, "image_min_pixels": 256}


class Letters:
    """A tokenizer of one token per character, with the symbols of Qwen-VL."""

    vocab_size = 124
    eos_id = pad_id = media_id = 0
    end_ids, unused_ids, chat_template = (0,), (), None
    render = SentencePieceTokenizer.render
    origin = ("Letters", "")

    def __init__(self) -> None:
        names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        self.symbols = dict(zip(names, range(120, 124), strict=True))

    def id_of(self, symbol: str) -> int:
        return self.symbols[symbol]

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def files(self) -> list[Path]:
        return []

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            symbol = next((s for s in self.symbols if text.startswith(s)), None)
            ids.append(self.symbols[symbol] if symbol else ord(text[0]) % 110 + 1)
            text = text[len(symbol or text[0]) :]
        return ids


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


def write_video(path: Path, frames: int, width: int, height: int, rate: int = 5) -> Path:
    generator = np.random.default_rng(frames)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def row_of(tmp_path_factory) -> Callable[[str], Row]:
    folder = tmp_path_factory.mktemp("media")
    videos = [
        write_video(folder / "wide.webm", 13, 60, 34),
        # So slow that its time takes more positions than its sides do.
        write_video(folder / "tall.webm", 6, 30, 48, rate=1),
    ]
    picture = np.random.default_rng(1).integers(0, 255, (25, 41, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")

    counts = {"one video": 1, "image and videos": 2, "videos": 2}

    def make(kind: str) -> Row:
        return Row(
            problem_id=kind,
            problem="What happens here?",
            answer="A",
            reasoning="",
            videos=tuple(videos[: counts.get(kind, 0)]),
            problem_type="general",
            data_type="video",
            source=kind,
            images=(folder / "picture.png",) if "image" in kind else (),
        )

    return make


def built(config: Config, row: Row) -> Prompt:
    return prompt_builder(config, Letters(), "sft").build(row)


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    """Transformers' model, its folder, and ours."""
    folder = tmp_path_factory.mktemp(request.param) / "hf"
    theirs = hugging_face(request.param)
    theirs.save_pretrained(folder)
    config, _, model = loaded(folder, video_frames=7, chat_template="plain", **PIXELS)
    return theirs, HfFolder(folder), config, model


KINDS = ["text", "image", "one video", "videos", "image and videos"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits(kind, both, row_of):
    _, source, config, model = both
    prompt = built(config, row_of(kind))
    units = [spec.load(range(spec.num_units)) for spec in prompt.media]
    theirs = reference_logits(source, config, prompt, units)
    ours = model_logits(model, config.parallel, config.model, prompt, units)
    assert_close(ours, theirs)
    assert difference(ours, theirs).largest <= TOLERANCE
    if units:  # the media are seen
        changed = model_logits(
            model, config.parallel, config.model, prompt, [(u[0] * 0.5,) for u in units]
        )
        assert difference(changed, theirs).largest > 100 * TOLERANCE


def test_text_that_tells_the_time(both, row_of):
    _, _, config, _ = both
    prompt = built(config, row_of("one video"))
    (spec,) = visual(prompt)
    text = Letters()
    starts = int((prompt.token_ids == text.id_of("<|vision_start|>")).sum())
    if config.model.family == "qwen2_5_vl":
        assert starts == 1
        return
    assert starts - 1 == spec.num_units == 4
    assert spec.frame_indices == (0, 2, 3, 5, 7, 9, 10, 12)  # of 5 a second
    ids = prompt.token_ids.tolist()
    for seconds in ("<0.2 seconds>", "<0.8 seconds>", "<1.6 seconds>", "<2.2 seconds>"):
        expected = [*text.encode(seconds), text.id_of("<|vision_start|>")]
        assert any(ids[i : i + len(expected)] == expected for i in range(len(ids))), seconds
