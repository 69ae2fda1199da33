"""``longrl frames`` writes what training sees, and tells in one line what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megatron_longrl.cli.frames import main
from megatron_longrl.config import Config
from megatron_longrl.media.modalities.visual.layout import VisualLayout
from megatron_longrl.media.modalities.visual.resize import resize_and_normalise
from tests.unit.data.clips import copy, decoded
from tests.unit.data.video_files import write

SCREEN = [*range(20), *range(70, 521, 50)]
"""Tenths of a second."""
MODEL = {
    "num_layers": 1,
    "hidden_size": 8,
    "ffn_hidden_size": 8,
    "num_attention_heads": 1,
}

VILA = {"vision_patch_size": 16, "vision_image_size": 32}  # fmt: skip


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "screen.mp4"
    return write(path, "libx264", 30, rate=10, width=96, height=64, time=lambda k: SCREEN[k])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder: Path, name: str = "recipe.yaml", **fields: Any) -> str:
    path = folder / name
    path.write_text(
        "\n".join(
            f"{k}: {v}"
            for k, v in (MODEL | ({} if "model_family" in fields else VILA) | fields).items()
        )
    )
    return str(path)


def written(folder: Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    listed = json.loads((folder / "frames.json").read_text())
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == [f"frame_{number:05}.png" for number in range(len(listed))]
    return listed, [np.asarray(Image.open(folder / name)) for name in names]


def test_upright_and_unresized(here: Path, screen: Path, capsys: pytest.CaptureFixture) -> None:
    path = copy(screen, here / "phone.mp4", rotation=-90)
    assert main([str(path), "--video-fps", "1"]) == 0
    listed, pictures = written(here / "phone_frames")
    assert "13 of 30 frames written to phone_frames" in capsys.readouterr().out
    indices = [0, 10, *range(19, 30)]
    assert [entry["index"] for entry in listed] == indices
    assert [entry["time"] for entry in listed] == [SCREEN[index] / 10 for index in indices]
    frames, _ = decoded(path)
    assert frames.shape[1:] == (96, 64, 3)
    assert np.array_equal(np.stack(pictures), frames[indices])


@pytest.mark.parametrize("family", ["vila", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("how", [("--video-fps", "1"), ("--video-frames", "7")])
def test_as_the_model_resizes_them(
    here: Path, screen: Path, family: str, how: tuple[str, str]
) -> None:
    from megatron_longrl.media.modalities.video.probe import probe
    from megatron_longrl.models.family import find_family

    own = VILA if family == "vila" else {"vision_patch_size": 16, "vision_temporal_patch_size": 2}
    fields: dict[str, Any] = {"model_family": family, **own}
    arguments = [str(screen), *how, "--config", recipe(here, **fields), "--output", "out"]
    assert main(arguments) == 0
    listed, pictures = written(here / "out")

    build = find_family(family).build_layout
    assert build is not None

    class _Tokenizer:
        media_id = 0

        def id_of(self, symbol: str) -> int:
            return 0

    tokenizer: Any = _Tokenizer()
    layout = build(Config.of({**MODEL, **fields, "seq_length": 64}).family, tokenizer)
    assert isinstance(layout, VisualLayout)
    info = probe(screen)
    fps, most = (float(how[1]), None) if how[0] == "--video-fps" else (None, int(how[1]))
    indices = list(dict.fromkeys(layout.frame_indices(info, most, fps)))
    assert [entry["index"] for entry in listed] == indices
    view = layout.preprocess_spec(info, len(indices))
    assert {picture.shape for picture in pictures} == {(view.height, view.width, 3)}
    # Normalised, they are what the tower is given.
    import torch

    frames, _ = decoded(screen)
    expected = resize_and_normalise(
        torch.from_numpy(frames[indices]), (view.height, view.width), view
    )
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (view.mean, view.std))
    levels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close((levels - mean) / std, expected, rtol=0, atol=1e-5)


def test_the_recipe_caps_a_rate(here: Path, screen: Path) -> None:
    given = recipe(here, video_frames=4)
    assert main([str(screen), "--video-fps", "1", "--config", given, "--output", "out"]) == 0
    assert len(written(here / "out")[0]) == 4


def test_a_second_call_replaces_the_frames_of_the_first(here: Path, screen: Path) -> None:
    for count in ("9", "3"):
        assert main([str(screen), "--video-frames", count]) == 0
    assert len(written(here / "screen_frames")[0]) == 3


def assert_one_line(arguments: list[str], capsys: pytest.CaptureFixture, *words: str) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    for word in words:
        assert word in err


def test_errors(here: Path, screen: Path, capsys: pytest.CaptureFixture) -> None:
    path = str(screen)
    (here / "text.mp4").write_text("no video " * 20)
    (here / "other").mkdir()
    (here / "other" / "thesis.tex").write_text("x")
    (here / "plain").write_text("x")
    frames = ["--video-frames", "2"]
    unknown = recipe(here, "unknown.yaml", no_such_field=1)
    text = recipe(here, "text.yaml", model_family="qwen2")
    for arguments, words in (
        ([path], ["--video-fps", "--video-frames"]),
        ([path, "--video-fps", "1", *frames], ["not allowed with"]),
        ([path, "--video-fps", "0"], ["--video-fps", "above 0"]),
        ([path, "--video-fps", "nan"], ["above 0"]),
        ([path, "--video-frames", "0"], ["at least 1"]),
        ([path, "--video-frames", "two"], ["--video-frames", "whole number"]),
        ([path, *frames, "--verbose"], ["--verbose"]),
        (frames, ["FILE"]),
        ([str(here / "missing.mp4"), *frames], ["missing.mp4", "No such file"]),
        ([str(here / "text.mp4"), *frames], ["text.mp4", "not a video"]),
        ([str(here / "new\nline.mp4"), *frames], ["new\\nline.mp4"]),
        ([path, *frames, "--output", "other"], ["other", "--output"]),
        ([path, *frames, "--output", "plain"], ["plain", "--output"]),
        ([path, *frames, "--output", "plain/sub"], ["plain/sub"]),
        ([path, *frames, "--config", "missing.yaml"], ["missing.yaml"]),
        ([path, *frames, "--config", unknown], ["no_such_field"]),
        ([path, *frames, "--config", text], ["reads text only"]),
    ):
        assert_one_line(arguments, capsys, *words)
    assert (here / "other" / "thesis.tex").exists()


def test_help_is_fast_and_loads_no_torch() -> None:
    code = (
        "import sys; from megatron_longrl.cli.frames import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'av' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "frames.json" in found.stdout


def test_as_a_program(here: Path, screen: Path) -> None:
    command = [sys.executable, "-m", "megatron_longrl.cli.frames", str(screen)]
    given = ["--video-frames", "2", "--config", recipe(here)]
    found = subprocess.run([*command, *given], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count("\n") == 1


@pytest.mark.parametrize("with_recipe", [True, False])
def test_frames_are_written_in_small_portions(
    here: Path, screen: Path, monkeypatch: pytest.MonkeyPatch, with_recipe: bool
) -> None:
    monkeypatch.setattr("megatron_longrl.cli.frames._CHUNK_BYTES", 1)
    given = ["--config", recipe(here)] if with_recipe else []
    assert main([str(screen), "--video-frames", "30", *given]) == 0
    assert len(written(here / "screen_frames")[1]) == 30
