"""Processors' files of every age are read as the installed transformers reads them, and what it
saves of them means the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.conversion.hf import config_from_hf
from tests.functional.launches import run
from tests.torchvision_beside import python_path

FAMILIES = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}
IMAGES: dict[str, Any] = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}
SIZE = {"size": {"shortest_edge": 3000, "longest_edge": 40000}}
OTHER = {"size": {"shortest_edge": 5000, "longest_edge": 60000}}
OLD = {"min_pixels": 700, "max_pixels": 8000}
MEAN = {"image_mean": [0.1, 0.2, 0.3]}


def cases(family: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Files by the case's name."""
    videos = {"video_processor_type": FAMILIES[family], "patch_size": 14}
    image_file, video_file = "preprocessor_config.json", "video_preprocessor_config.json"
    both = {image_file: {**IMAGES, **OLD}, video_file: {**videos, **OTHER, **MEAN}}
    nested = {
        "image_processor": {**IMAGES, **SIZE, **MEAN},
        "video_processor": {**videos, **OTHER},
    }
    return {
        "two files": both,
        "defaults": {image_file: IMAGES, video_file: videos},
        "nested": {"processor_config.json": nested},
        "nested beside files": {"processor_config.json": nested, **both},
        "images alone nested": {
            "processor_config.json": {"image_processor": nested["image_processor"]},
            **both,
        },
        "an old processor_config.json": {"processor_config.json": {"x": 1}, **both},
        "one file": {image_file: {**IMAGES, **OLD}},
        "old names in both": {image_file: {**IMAGES, **OLD}, video_file: {**videos, **OLD}},
        "old names before size": {image_file: {**IMAGES, **SIZE, **OLD}, video_file: videos},
    }


NAMES = [(family, name) for family in FAMILIES for name in cases(family)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processors")
    for family, name in NAMES:
        place = folder / f"{family} {name}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps({"model_type": family}))
        for file, content in cases(family)[name].items():
            (place / file).write_text(json.dumps(content))
    run(["-m", "tests.parity.saved_processors", str(folder)], 1, 120, python_path()).succeeded()
    return folder


@pytest.mark.parametrize(("family", "name"), NAMES, ids=[" ".join(pair) for pair in NAMES])
def test_read_as_transformers_reads_them(family, name, answers):
    place = answers / f"{family} {name}"
    theirs = json.loads((place / "answers.json").read_text())
    for folder in (place, place / "saved"):
        ours = config_from_hf(folder)
        for kind in ("image", "video"):
            for edge in ("min_pixels", "max_pixels"):
                assert ours[f"{kind}_{edge}"] == theirs[f"{kind}_{edge}"], (folder, kind)
            for which in ("mean", "std"):
                found = ours.get(f"{kind}_{which}", ours[f"image_{which}"])
                assert list(found) == theirs[f"{kind}_{which}"], (folder, kind, which)
