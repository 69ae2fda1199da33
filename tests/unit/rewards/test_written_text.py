"""The reward of text in pictures, which RapidOCR reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.rewards.pictures import packed
from megatron_longrl.rewards.result import RewardResult
from megatron_longrl.rewards.scorer import Scorer
from tests.unit.rewards.samples import make_sample


def written(text: str) -> np.ndarray:
    """128 x 320 pixels with dark red letters, which a reader with swapped channels sees, too."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (320, 128), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((16, 30), text, fill=(120, 0, 0), font=ImageFont.load_default(40))
    return np.asarray(picture)


def scores(*asked: tuple[str, list[str], dict[str, Any]]) -> list[RewardResult]:
    """Scores of prompts with what their frames show, from one process."""
    scorer = Scorer(RewardSection(rewards=["ocr"], reward_workers=1))
    try:
        return [
            scorer.result(
                scorer.score(
                    "ocr",
                    make_sample(question=prompt, metadata=metadata).with_picture(
                        packed(np.stack([*map(written, shown)])), is_film=len(shown) > 1
                    ),
                )
            )[0]
            for prompt, shown, metadata in asked
        ]
    finally:
        scorer.close()


def test_text_in_pictures() -> None:
    sign = 'A sign that says "Hello World", at night'
    found = scores(
        (sign, ["HELLO WORLD"], {}),
        (sign, ["HELLO"], {}),
        (sign, [""], {}),
        (sign, ["HELLO", ""], {}),
        (sign, ["OPEN 24"], {"text": "open"}),
        ("a sign", ["HELLO"], {}),
    )
    assert [one.score for one in found[:5]] == pytest.approx([1.0, 0.5, 0.0, 0.25, 1.0])
    assert found[5].score is None and "no text is asked for" in str(found[5].error)
