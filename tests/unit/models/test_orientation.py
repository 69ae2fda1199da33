"""Images with an EXIF orientation: as each family's own reader takes them, through a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from megatron_longrl.config import Config
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.models.prompts import prompt_builder
from tests.unit.data.video_files import draw_picture


class Letters(Tokenizer):
    """A tokenizer of one token per character."""

    vocab_size = 300
    eos_id = pad_id = media_id = 0
    origin = ("Letters", "")
    chat_template = None
    end_ids = (0,)
    unused_ids = ()

    def id_of(self, symbol: str) -> int:
        return 299

    def encode(self, text: str) -> list[int]:
        return [1 + ord(character) % 250 for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def render(self, messages: Any, template: str, *, asks: bool) -> str:
        return "".join(f"{message['content']}\n" for message in messages)

    def files(self) -> list[Path]:
        return []


@pytest.mark.parametrize(
    ("family", "turns"), [("vila", False), ("qwen2_5_vl", True), ("qwen3_vl", True)]
)
def test_orientation(tmp_path: Path, family: str, turns: bool) -> None:
    stored = Image.fromarray(draw_picture(2, 64, 128))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "phone.png", exif=exif)
    stored.save(tmp_path / "stored.png")
    stored.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    config = Config.of(
        {
            "model_family": family,
            "num_layers": 1,
            "hidden_size": 8,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "seq_length": 4096,
            "chat_template": "plain",
            "vision_patch_size": 16,
            **(
                {"vision_image_size": 32} if family == "vila" else {"vision_temporal_patch_size": 2}
            ),
        }
    )
    builder = prompt_builder(config, cast(Any, Letters()), "sft")

    def spec_of(name: str):
        row = Row("0", "What?", "A", "", (), "general", "image", "rows:1",
                  images=(tmp_path / name,))  # fmt: skip
        return builder.build(row).media[0]

    phone, expected = spec_of("phone.png"), spec_of("upright.png" if turns else "stored.png")
    other = spec_of("stored.png" if turns else "upright.png")
    assert phone.preprocess == expected.preprocess
    assert np.array_equal(phone.frames(), expected.frames())
    assert phone.preprocess != other.preprocess or not np.array_equal(
        phone.frames(), other.frames()
    )
    assert phone.upright == turns
    assert phone.key() != expected.key()  # another file
