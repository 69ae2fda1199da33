"""Samples and functions' files for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from megatron_longrl.experience.reward_input import RewardInput


def make_sample(response: str = "r", index: int = 0, **fields: Any) -> RewardInput:
    """A sample of the prompt ``u``."""
    values: dict[str, Any] = {
        "uid": "u",
        "question": "q?",
        "answer": "B",
        "problem_type": "general",
        "video": "v.mp4",
        "metadata": {"level": 3},
    }
    return RewardInput(response=response, index=index, **{**values, **fields})


def write_file(folder: Path, code: str, name: str = "mine.py") -> str:
    """A user's file."""
    path = folder / name
    path.write_text(dedent(code), encoding="utf-8")
    return str(path)
