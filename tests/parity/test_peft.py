"""Exported adapters load in PEFT and compute there what they compute here; merged exports are base
plus adapter; adapters of PEFT come in."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.cli.conversion import hugging_face, loader_megatron, loader_peft, saver_peft
from megatron_longrl.cli.conversion.plugins import tensor_names
from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import HfFolder, config_from_hf, load_hf_weights
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.mapping import export_named_tensors, local_adapters
from megatron_longrl.models.hf_reference import load_model
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import TrainedModel, build_model
from tests.parity.comparison import logits
from tests.parity.test_text_hf_parity import CASES
from tests.parity.test_text_hf_parity import hugging_face as text_model
from tests.tiny_omni import BINS, thinker
from tests.tiny_qwen_vl import hugging_face as vision_model

TOLERANCE = 1e-5
"""Of the largest entry."""

TEXT = ("Qwen2, tied", "Qwen2, untied", "Qwen3, untied", "Llama 3.1")
VISION = ("qwen2_5_vl", "qwen3_vl")
ALL = ("language_model", "projector", "vision_tower")
RUNS: dict[str, dict[str, Any]] = {
    **{name: {} for name in (*TEXT, *(f"{name}, language model" for name in VISION))},
    **{f"{name}, all parts": {"lora_parts": ALL} for name in VISION},
    "qwen2_5_omni, all parts": {"lora_parts": (*ALL, "audio_tower")},
    "Qwen2, tied, rsLoRA on two layers": {
        "lora_use_rslora": True,
        "lora_target_modules": ("linear_qkv", "linear_fc2"),
    },
}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


def write_base(name: str, folder: Path) -> None:
    """Random weights, as transformers saves them."""
    family = name.partition(",")[0]
    if family == "vila":
        write_vila(folder)
    elif family == "qwen2_5_omni":
        thinker().save_pretrained(folder)
    elif family in VISION:
        vision_model(family).save_pretrained(folder)
    else:
        kind, sizes = CASES[name.removesuffix(", rsLoRA on two layers")]
        text_model(kind, sizes, torch.float32).save_pretrained(folder)


def trained(name: str, folder: Path) -> TrainedModel:
    """A run in ``folder/run`` with random adapters on ``folder/hf``, and its model."""
    write_base(name, folder / "hf")
    changes = RUNS.get(name, {"lora_parts": ALL})
    fields = {"seq_length": 512, "lora_rank": 3, "lora_alpha": 4, **changes}
    config = Config.of({**config_from_hf(folder / "hf"), **fields})
    groups = init_parallel(config.parallel, config.model)
    with torch.enable_grad():  # core looks for the graph of parameters
        model = build_model(config, groups)
    load_hf_weights(folder / "hf", model.modules, config, groups)
    torch.manual_seed(9)
    for adapter in local_adapters(model.modules).values():
        torch.nn.init.normal_(adapter.B, std=0.1)
    save_checkpoint(
        folder / "run",
        1,
        modules=model.modules,
        optimizers={},
        scheduler=None,
        state={},
        groups=groups,
        config=config,
        carry_from=folder / "hf",
    )
    return model


def export(folder: Path) -> None:
    """To ``folder/adapter`` for PEFT, and to ``folder/merged``."""
    source = loader_megatron.load_checkpoint(
        Namespace(load_dir=folder / "run", iteration=None, use_ema=False)
    )
    flags = Namespace(torch_dtype=None, max_shard_gib=2.0, base_dir=folder / "hf")
    saver_peft.save_checkpoint(source, Namespace(**vars(flags), save_dir=folder / "adapter"))
    hugging_face.write_folder(source, Namespace(**vars(flags), save_dir=folder / "merged"))


def with_adapter(folder: Path) -> Any:
    """transformers' model of the base, inside PEFT's."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(folder / "hf"), str(folder / "adapter")).eval()
    ours = set(load_file(folder / "adapter/adapter_model.safetensors"))
    theirs = {n.replace(".default", "") for n, _ in model.named_parameters() if ".lora_" in n}
    assert theirs == ours
    return model


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error <= TOLERANCE, float(error)


@pytest.mark.parametrize("name", RUNS)
@torch.no_grad()
def test_peft_computes_the_same(name, tmp_path):
    model = trained(name, tmp_path)
    export(tmp_path)
    tokens = torch.randint(0, 100, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(40).expand(2, -1)
    theirs = with_adapter(tmp_path)
    expected = theirs(input_ids=tokens).logits
    ours = logits(model.policy.module, tokens, positions)[..., : expected.shape[-1]]
    assert_close(ours, expected)
    assert_close(load_model(tmp_path / "merged")(input_ids=tokens).logits, expected)
    # The adapter is no small part of it.
    with theirs.disable_adapter():
        plain = theirs(input_ids=tokens).logits
    assert (expected - plain).abs().max() > 100 * TOLERANCE * plain.abs().max()


@pytest.mark.parametrize("name", [f"{name}, all parts" for name in VISION])
@torch.no_grad()
def test_the_tower_in_peft_computes_the_same(name, tmp_path):
    from tests.parity.test_qwen_vl_hf_parity import PATCH, patches

    model = trained(name, tmp_path)
    export(tmp_path)
    frames = torch.randn(6, 3, 16, 24)
    units = frames.unflatten(0, (-1, 2))
    grid = torch.tensor([[3, 16 // PATCH, 24 // PATCH]])
    visual = with_adapter(tmp_path).base_model.model.model.visual
    expected = visual(patches(frames), grid_thw=grid)
    whole = [expected.pooler_output, *getattr(expected, "deepstack_features", [])]
    assert_close(model.encoders["encoder"].module(units).flatten(0, 1), torch.cat(whole, dim=-1))


@torch.no_grad()
def test_the_audio_tower_in_peft_computes_the_same(tmp_path):
    model = trained("qwen2_5_omni, all parts", tmp_path)
    export(tmp_path)
    features, frames = torch.randn(2, 200, BINS), torch.tensor([200, 137])
    features[1, 137:] = 0
    theirs = with_adapter(tmp_path)
    clip = features.flatten(0, 1)[: int(frames.sum())].T
    lengths = torch.tensor([int(frames.sum())])
    expected = theirs.base_model.model.audio_tower(clip, feature_lens=lengths).last_hidden_state
    assert_close(model.encoders["audio_encoder"].module(features, frames), expected)
    with theirs.disable_adapter():
        plain = theirs.base_model.model.audio_tower(clip, feature_lens=lengths).last_hidden_state
    assert (expected - plain).abs().max() > 100 * TOLERANCE * plain.abs().max()


@pytest.mark.parametrize(
    "name", ["Qwen2, tied", "Qwen2, untied", "qwen2_5_vl, all parts", "qwen2_5_omni, all parts"]
)
def test_a_merged_export_is_base_plus_adapter(name, tmp_path):
    """As PEFT merges them."""
    trained(name, tmp_path)
    export(tmp_path)
    theirs = with_adapter(tmp_path).merge_and_unload().state_dict()
    ours = load_model(tmp_path / "merged").state_dict()
    base = load_model(tmp_path / "hf").state_dict()
    assert set(ours) == set(theirs)
    changed = 0
    for key, tensor in ours.items():
        assert_close(tensor, theirs[key])
        changed += not tensor.equal(base[key])
    adapters = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert changed == len(adapters) // 2


@pytest.mark.parametrize("name", ["Qwen2, untied", "qwen2_5_vl, all parts", "qwen3_vl, all parts"])
def test_an_adapter_that_peft_has_saved_comes_in_merged(name, tmp_path):
    """With an A of its own for each projection, which ours share."""
    from peft import LoraConfig, get_peft_model

    write_base(name, tmp_path / "hf")
    torch.manual_seed(2)
    settings = LoraConfig(r=5, lora_alpha=3, target_modules=["q_proj", "v_proj", "up_proj", "qkv"])
    theirs = get_peft_model(load_model(tmp_path / "hf"), settings)
    for parameter_name, parameter in theirs.named_parameters():
        if ".lora_B." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "adapter")
    source = loader_peft.load_checkpoint(
        Namespace(load_dir=tmp_path / "adapter", base_dir=tmp_path / "hf")
    )
    merged = theirs.merge_and_unload().state_dict()
    base, changed = HfFolder(tmp_path / "hf"), 0
    for tensor_name in tensor_names(source.config):
        tensor = source.read(tensor_name)
        assert_close(tensor, merged[base.family.module_path(tensor_name)].reshape(tensor.shape))
        changed += not tensor.equal(base.read(tensor_name))
    assert changed == len(load_file(tmp_path / "adapter/adapter_model.safetensors")) // 2


VILA: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 48,
    "ffn_hidden_size": 40,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 131,
    "init_method_std": 0.2,
    "vision_image_size": 28,
    "vision_patch_size": 7,
    "vision_hidden_size": 16,
    "vision_num_layers": 3,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 24,
    "seq_length": 512,
}


def write_vila(folder: Path) -> None:
    """Random weights."""
    config = Config.of(VILA)
    groups = init_parallel(config.parallel, config.model)
    model = build_model(config, groups, train=False)
    with HfFolderWriter(folder, config) as writer:
        for name, tensor in export_named_tensors(model.modules, config, groups):
            writer.add(name, tensor)


@torch.no_grad()
def test_the_parts_of_vila_in_peft(tmp_path):
    """Each folder over the class that transformers has for it."""
    from peft import PeftModel
    from transformers import SiglipVisionModel

    model = trained("vila, all parts", tmp_path)
    export(tmp_path)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        *("llm", "vision_tower", "mm_projector"),
    }
    base, adapter = tmp_path / "hf", tmp_path / "adapter"
    tokens = torch.arange(40).view(2, 20)
    llm = PeftModel.from_pretrained(load_model(base / "llm"), str(adapter / "llm")).eval()
    ours = logits(model.policy.module, tokens, torch.arange(20).expand(2, -1))
    assert_close(ours[..., : VILA["vocab_size"]], llm(input_ids=tokens).logits)
    frames = torch.randn(2, 3, 28, 28)
    plain = SiglipVisionModel.from_pretrained(base / "vision_tower", local_files_only=True).eval()
    before = plain(frames, output_hidden_states=True).hidden_states[-2].clone()
    tower = PeftModel.from_pretrained(plain, str(adapter / "vision_tower")).eval()
    held = {n.replace(".default", "") for n, _ in tower.named_parameters() if ".lora_" in n}
    assert held == set(load_file(adapter / "vision_tower/adapter_model.safetensors"))
    expected = tower(frames, output_hidden_states=True).hidden_states[-2]
    assert_close(model.encoders["encoder"].module.vision_tower(frames), expected)
    assert (before - expected).abs().max() > 0.01 * before.abs().max()
