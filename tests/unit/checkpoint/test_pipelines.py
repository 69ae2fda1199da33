"""Folders of diffusers' pipelines: there and back, and what is wrong with them in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from megatron_longrl.arena.shapes_folder import write_folder
from megatron_longrl.cli.conversion.contents import contents_of
from megatron_longrl.cli.verify import main as verify
from megatron_longrl.conversion.hf import config_from_hf
from megatron_longrl.errors import UserError
from tests import tiny_sd3

SIZES: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "sample_size": 4,
    "pos_embed_max_size": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "sd3.5 medium, bf16, in shards": {"dtype": torch.bfloat16, "shard": "40KB"},
    "sd3.5 large": {"dual_attention_layers": ()},
    "sd3, fp16": {"dual_attention_layers": (), "qk_norm": None, "dtype": torch.float16},
}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline, whose transformer tests replace."""
    folder = tmp_path_factory.mktemp("pipeline") / "frozen"
    write_folder(folder, 0, steps=1)
    (folder / "LICENSE.md").write_text("a licence\n")
    return folder


def pipeline(frozen: Path, folder: Path, **more: Any) -> SD3Transformer2DModel:
    """A copy with another transformer, which is returned."""
    dtype, shard = more.pop("dtype", torch.float32), more.pop("shard", "1GB")
    shutil.copytree(frozen, folder)
    shutil.rmtree(folder / "transformer")
    model: Any = tiny_sd3.diffusers_model(**SIZES, **more).to(dtype)
    model.save_pretrained(folder / "transformer", max_shard_size=shard)
    return model


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the transformer, as its files hold them."""
    found: dict[str, torch.Tensor] = {}
    for file in (folder / "transformer").glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_there_and_back(kind, frozen, convert, tmp_path):
    model = pipeline(frozen, tmp_path / "hf", **kind)
    dtype = kind.get("dtype", torch.float32)
    options = ("--dtype", "fp16") if dtype is torch.float16 else ("--max-shard-gib", "0.00005")
    for loader, saver, start, end, more in (
        ("hf_sd3", "megatron", "hf", "megatron", ()),
        ("megatron", "hf_sd3", "megatron", "back", options),
    ):
        status, out, error = convert(
            "--loader", loader, "--saver", saver, "--verify", *more,
            "--load-dir", tmp_path / start, "--save-dir", tmp_path / end,
        )  # fmt: skip
        assert status == 0, error
        assert "verified" in out
    before, after = model.state_dict(), state_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype and torch.equal(tensor, after[name]), name
    again = SD3Transformer2DModel.from_pretrained(tmp_path / "back/transformer", torch_dtype=dtype)
    assert all(torch.equal(again.state_dict()[name], before[name]) for name in before)
    others = [p.relative_to(tmp_path / "hf") for p in (tmp_path / "hf").rglob("*") if p.is_file()]
    for path in others:
        if path.parts[0] != "transformer" or path.name == "config.json":
            assert (tmp_path / "hf" / path).read_bytes() == (tmp_path / "back" / path).read_bytes()
    assert (
        verify(["--hf-dir", f"{tmp_path / 'back'}", "--megatron-dir", f"{tmp_path / 'megatron'}"])
        == 0
    )
    told = contents_of(tmp_path / "hf")
    assert told.facts["model_family"] == "sd3" and len(told.tensors) == len(before)


def test_fused_projections(frozen, tmp_path, convert):
    """diffusers keeps both forms; a folder may have one alone, but not two that differ."""
    model = pipeline(frozen, tmp_path / "hf")
    expected = model.state_dict()
    model.fuse_qkv_projections()
    fused = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(fused) > len(expected)
    split = ("to_q.", "to_k.", "to_v.", "add_q_proj.", "add_k_proj.", "add_v_proj.")
    alone = {n: t for n, t in fused.items() if not any(part in n for part in split)}
    stale = fused | {"transformer_blocks.1.attn.to_k.bias": torch.ones(64)}
    for number, tensors in enumerate((fused, alone, stale)):
        save_file(tensors, tmp_path / "hf" / WEIGHTS, metadata={"format": "pt"})
        status, _, error = convert(
            "--loader", "hf", "--saver", "hf",
            "--load-dir", tmp_path / "hf", "--save-dir", tmp_path / f"{number}",
        )  # fmt: skip
        if tensors is stale:
            assert status == 2
            assert "to_k.bias differs from its copy in transformer_blocks.1.attn.to_qkv" in error
            continue
        assert status == 0, error
        found = state_of(tmp_path / f"{number}")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["proj_out.bias"]
    save_file(tensors, folder / WEIGHTS)


def torn(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def half_downloaded(folder: Path) -> None:
    name = "diffusion_pytorch_model-00001-of-00002.safetensors"
    (folder / WEIGHTS).rename(folder / "transformer" / name)
    other = name.replace("1-of", "2-of")
    (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"proj_out.bias": other, "x": name}})
    )


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another pipeline": (
        lambda f: change(f / "model_index.json", _class_name="FluxPipeline"),
        "model_index.json: _class_name FluxPipeline is not supported, only StableDiffusion3",
    ),
    "another transformer": (
        lambda f: change(f / "transformer/config.json", _class_name="FluxTransformer2DModel"),
        "transformer/config.json: _class_name FluxTransformer2DModel is not supported, only SD3",
    ),
    "no transformer": (
        lambda f: shutil.rmtree(f / "transformer"),
        "has no folder transformer",
    ),
    "no settings": (
        lambda f: (f / "transformer/config.json").unlink(),
        "transformer/config.json does not exist",
    ),
    "no weights": (
        lambda f: (f / WEIGHTS).unlink(),
        "transformer holds no diffusion_pytorch_model.safetensors and no ",
    ),
    "a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "transformer/diffusion_pytorch_model.bin"),
        "; diffusion_pytorch_model.bin is a pickle, convert it to safetensors",
    ),
    "a variant": (
        lambda f: (f / WEIGHTS).rename(f / "transformer/diffusion_pytorch_model.fp16.safetensors"),
        "; diffusers does not read diffusion_pytorch_model.fp16.safetensors either: give it that",
    ),
    "torn": (torn, "diffusion_pytorch_model.safetensors is truncated or no safetensors file"),
    "half downloaded": (half_downloaded, "of-00002.safetensors is named by the index but is no f"),
    "a tensor less": (without_a_tensor, "transformer lacks the tensor proj_out.bias"),
    "another depth": (
        lambda f: change(f / "transformer/config.json", num_layers=4),
        "num_layers 4 does not fit the weights, which have no tensor transformer_blocks.3.",
    ),
    "less depth": (
        lambda f: change(f / "transformer/config.json", num_layers=2),
        "twice num_attention_heads x attention_head_dim (128) does not fit the tensor "
        "transformer_blocks.1.norm1_context.linear.bias [384]",
    ),
    "another width": (
        lambda f: change(f / "transformer/config.json", joint_attention_dim=65),
        "joint_attention_dim (65) does not fit the tensor context_embedder.weight [64, 64]",
    ),
    "another table": (
        lambda f: change(f / "transformer/config.json", pos_embed_max_size=5),
        "pos_embed_max_size squared (25) does not fit the tensor pos_embed.pos_embed [1, 16, 64]",
    ),
    "no number": (
        lambda f: change(f / "transformer/config.json", num_layers="three"),
        "transformer/config.json: num_layers three is no whole number",
    ),
    "streams apart": (
        lambda f: change(f / "transformer/config.json", caption_projection_dim=32),
        "caption_projection_dim 32 is not num_attention_heads x attention_head_dim (64)",
    ),
    "no norm": (
        lambda f: change(f / "transformer/config.json", qk_norm=None),
        "holds the tensor transformer_blocks.0.attn.norm",
    ),
    "no second attention": (
        lambda f: change(f / "transformer/config.json", dual_attention_layers=[]),
        "holds the tensor transformer_blocks.0.attn2",
    ),
    "another schedule": (
        lambda f: change(f / "scheduler/scheduler_config.json", use_dynamic_shifting=True),
        "scheduler_config.json: use_dynamic_shifting True is not supported, only False",
    ),
    "no autoencoder": (
        lambda f: shutil.rmtree(f / "vae"),
        "has no folder vae, which its model_index.json names",
    ),
    "an autoencoder in a pickle": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors").rename(
            f / "vae/diffusion_pytorch_model.bin"
        ),
        "vae holds no safetensors, and diffusion_pytorch_model.bin is a pickle: convert it",
    ),
}


@pytest.fixture(scope="module")
def whole(frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "hf"
    pipeline(frozen, folder)
    return folder


@pytest.mark.parametrize(("damage", "line"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_wrong_is_one_line(damage, line, whole, convert, tmp_path):
    shutil.copytree(whole, tmp_path / "hf")
    damage(tmp_path / "hf")
    status, _, error = convert(
        "--loader", "hf_sd3", "--saver", "hf_sd3",
        "--load-dir", tmp_path / "hf", "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert line in error
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_one_component_is_no_pipeline(whole):
    with pytest.raises(UserError, match=r"one component of a pipeline of diffusers: give the fold"):
        config_from_hf(whole / "transformer")


def test_settings_are_fields(whole):
    fields = config_from_hf(whole)
    assert fields["schedule_shift"] == 3.0 and fields["diffusers_folder"] == str(whole)
    assert fields["qk_layernorm"] is True and fields["dual_attention_layers"] == [0]
    assert (fields["hidden_size"], fields["kv_channels"]) == (64, 16)
