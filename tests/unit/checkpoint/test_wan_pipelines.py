"""Folders of diffusers with Wan: there and back, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_longrl.cli.verify import main as verify
from megatron_longrl.conversion.hf import config_from_hf
from tests import tiny_wan

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "hf"
    tiny_wan.write_folder(folder)
    return folder


def test_there_and_back(whole, convert, tmp_path):
    for loader, saver, start, end in (
        ("hf_wan", "megatron", whole, "megatron"),
        ("megatron", "hf_wan", tmp_path / "megatron", "back"),
    ):
        status, _, error = convert(
            "--loader", loader, "--saver", saver, "--verify",
            "--load-dir", start, "--save-dir", tmp_path / end,
        )  # fmt: skip
        assert status == 0, error
    before, after = load_file(whole / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    folders = ["--hf-dir", f"{tmp_path / 'back'}", "--megatron-dir", f"{tmp_path / 'megatron'}"]
    assert verify(folders) == 0


def test_fused_projections(whole, convert, tmp_path):
    shutil.copytree(whole, tmp_path / "hf")
    before = load_file(whole / WEIGHTS)
    model: Any = tiny_wan.diffusers_model()
    model.fuse_qkv_projections()
    fused = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in ("attn1.to_q.", ".to_k.", ".to_v."))
    }
    assert len(fused) < len(before)
    save_file(fused, tmp_path / "hf" / WEIGHTS, metadata={"format": "pt"})
    status, _, error = convert(
        "--loader", "hf_wan", "--saver", "hf_wan",
        "--load-dir", tmp_path / "hf", "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, error
    after = load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_settings_are_fields(whole):
    fields = config_from_hf(whole)
    assert fields["schedule_shift"] == 3.0 and fields["diffusers_folder"] == str(whole)
    assert (fields["hidden_size"], fields["ffn_hidden_size"], fields["text_dim"]) == (28, 48, 40)


@pytest.mark.parametrize(
    ("file", "values", "line"),
    [
        ("model_index", {"boundary_ratio": 0.9}, "boundary_ratio 0.9 is of two transformers"),
        ("transformer/config", {"in_channels": 36}, "out_channels 16 is not in_channels (36), as"),
        ("transformer/config", {"image_dim": 1280}, "image_dim 1280 is of a model that is given"),
        ("transformer/config", {"patch_size": [2, 2, 2]}, "patch_size [2, 2, 2] is not supported"),
        ("transformer/config", {"ffn_dim": 50}, "ffn_dim"),
        ("scheduler/scheduler_config", {"_class_name": "X"}, "_class_name X is not supported"),
    ],
)
def test_what_is_refused(file, values, line, whole, convert, tmp_path):
    shutil.copytree(whole, tmp_path / "hf")
    path = tmp_path / "hf" / f"{file}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    status, _, error = convert(
        "--loader", "hf_wan", "--saver", "hf_wan",
        "--load-dir", tmp_path / "hf", "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 2 and error.startswith("error: ") and line in error
