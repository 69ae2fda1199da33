"""Qwen2.5-Omni checkpoints compute here what transformers computes, and come back as they went:
those of a thinker alone, and whole ones, whose other parts are carried along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_longrl.conversion.hf import HfFolder, config_from_hf
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.mapping import export_named_tensors, weight_stream
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from tests.parity.comparison import assert_close, loaded, logits
from tests.parity.test_qwen_vl_hf_parity import patches
from tests.tiny_omni import BINS, VOCABULARY, thinker
from tests.tiny_qwen_vl import PATCH


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


def in_units(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [frames, bins] as the encoder takes them."""
    parts = features.split(200)
    padded = torch.zeros(len(parts), 200, features.shape[1])
    for number, part in enumerate(parts):
        padded[number, : len(part)] = part
    return padded, torch.tensor([len(part) for part in parts])


@torch.no_grad()
def test_both_towers(tmp_path):
    theirs = thinker()
    theirs.save_pretrained(tmp_path)
    config, _, model = loaded(tmp_path)
    assert config.model.family == "qwen2_5_omni"
    clips = [torch.randn(frames, BINS) for frames in (3, 5, 137, 200, 333, 1000)]
    lengths = torch.tensor([len(clip) for clip in clips])
    expected = theirs.audio_tower(torch.cat(clips).T, feature_lens=lengths).last_hidden_state
    units = [in_units(clip) for clip in clips]
    features, frames = (torch.cat(part) for part in zip(*units, strict=True))
    encoder = model.encoders["audio_encoder"].module
    assert_close(encoder(features, frames), expected)
    alone = [encoder(*unit) for unit in units]
    torch.testing.assert_close(torch.cat(alone), encoder(features, frames), atol=2e-6, rtol=0)
    pictures = torch.randn(6, 3, 24, 40)
    grid = torch.tensor([[3, 24 // PATCH, 40 // PATCH]])
    expected = theirs.visual(patches(pictures), grid_thw=grid).pooler_output
    ours = model.encoders["encoder"].module(pictures.unflatten(0, (-1, 2))).flatten(0, 1)
    assert_close(ours, expected)


@torch.no_grad()
def test_logits_at_multimodal_positions(tmp_path):
    theirs = thinker()
    theirs.save_pretrained(tmp_path)
    _, _, model = loaded(tmp_path)
    tokens = torch.randint(0, 100, (2, 40))
    positions = torch.randint(0, 3000, (2, 40, 3))
    expected = theirs(input_ids=tokens, position_ids=positions.permute(2, 0, 1)).logits
    assert_close(logits(model.policy.module, tokens, positions)[..., :VOCABULARY], expected)


def make_whole(source: Path, folder: Path) -> None:
    """A whole checkpoint around a thinker: two other parts, one in a dtype of its own."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    renamed = {f"thinker.{name}": tensor for name, tensor in tensors.items()}
    renamed["talker.model.embed_tokens.weight"] = torch.randn(7, 3).bfloat16()
    renamed["token2wav.code2wav_dit_model.x.bias"] = torch.randn(5)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "qwen2_5_omni",
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "thinker_config": json.loads((source / "config.json").read_text()),
        "talker_config": {"model_type": "qwen2_5_omni_talker", "num_hidden_layers": 2},
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spk_dict.pt").write_bytes(b"voices, which nobody unpickles")


@pytest.mark.parametrize("kind", ["thinker", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_round_trip_is_bit_exact(kind, dtype, tmp_path):
    source, back = tmp_path / "hf", tmp_path / "back"
    theirs = thinker(dtype)
    theirs.save_pretrained(source)
    if kind == "whole":
        make_whole(source, tmp_path / "whole")
        source = tmp_path / "whole"
    config, groups, model = loaded(source, bf16=dtype is torch.bfloat16)
    read = HfFolder(source)
    unused = read.unused_tensors(config)
    with HfFolderWriter(back, config, files=read.files(), unused=unused) as writer:
        for name, tensor in export_named_tensors(model.modules, config, groups):
            writer.add(name, tensor)
    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert set(before) == set(after)
    assert sum("audio_bos_eos_token" in name for name in before) == 1
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
        assert tensor.dtype == after[name].dtype, name
    assert config_from_hf(back) == config_from_hf(source)
    if kind == "whole":
        assert (back / "spk_dict.pt").read_bytes() == (source / "spk_dict.pt").read_bytes()
        told = json.loads((back / "config.json").read_text())
        assert told["talker_config"]["num_hidden_layers"] == 2
        assert told["architectures"] == ["Qwen2_5OmniModel"]
    settings = theirs.config
    again, report = type(theirs).from_pretrained(back, config=settings, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_folder_without_a_source_has_every_tensor_of_their_class(tmp_path):
    """As after training from random weights: what no layer here holds is completed."""
    theirs = thinker()
    theirs.save_pretrained(tmp_path / "hf")
    config, groups, model = loaded(tmp_path / "hf")
    files = HfFolder(tmp_path / "hf").files()
    with HfFolderWriter(tmp_path / "back", config, files=files) as writer:
        for name, tensor in export_named_tensors(model.modules, config, groups):
            writer.add(name, tensor)
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    written = load_file(tmp_path / "back/model.safetensors")
    assert {name: tensor.shape for name, tensor in written.items()} == expected


def test_an_engine_gets_the_language_model_by_its_own_names(tmp_path):
    theirs = thinker()
    theirs.save_pretrained(tmp_path / "hf")
    make_whole(tmp_path / "hf", tmp_path / "whole")
    config, groups, model = loaded(tmp_path / "whole")
    streamed = dict(weight_stream(model.modules, config, groups))
    expected = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if name.startswith(("model.", "lm_head."))
    }
    assert set(streamed) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(streamed[name], tensor)


def test_what_is_missing_or_odd_is_named(tmp_path):
    """A tensor of the audio tower, and settings that are not computed here."""
    from megatron_longrl.errors import UserError

    thinker().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads((tmp_path / "config.json").read_text())
    gone = "audio_tower.layers.1.self_attn.q_proj.bias"
    save_file({n: t for n, t in tensors.items() if n != gone}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks the tensor {gone}"):
        loaded(tmp_path)
    for name, value, reason in (
        ("n_window", 75, "no even number"),
        ("output_dim", 64, "not the hidden_size"),
        ("activation_function", "relu", "only gelu"),
    ):
        changed = {**config, "audio_config": {**config["audio_config"], name: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=reason):
            config_from_hf(tmp_path)
