"""Adapters in PEFT's files: which modules they name, and what is refused. tests/parity has PEFT."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.cli.conversion.plugins import tensor_names
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.conversion.mapping import export_named_tensors, local_adapters
from megatron_longrl.conversion.peft import SETTINGS, WEIGHTS, PeftFolder, target_modules
from megatron_longrl.errors import UserError
from megatron_longrl.models.family import find_family

PARTS = ("language_model", "projector", "vision_tower")
LAYERS = [f"model.layers.{n}." for n in range(3)]


def test_ends_of_names_select_modules_where_they_are_theirs_alone():
    modules = [f"{layer}{name}" for layer in LAYERS for name in ("mlp.up_proj", "attn.q_proj")]
    assert target_modules(modules, ["model.norm", "lm_head"]) == ["q_proj", "up_proj"]


@pytest.mark.parametrize(
    ("modules", "others"),
    [
        (
            [f"{layer}mlp.up_proj" for layer in LAYERS],
            ["visual.blocks.0.mlp.up_proj", "model.layers.3.mlp.up_proj"],
        ),
        # Their ends would select layers 0 and 2.
        (["visual.merger.mlp.0", "visual.merger.mlp.2"], ["model.layers.0", "model.layers.2"]),
        (
            [f"{layer}{name}" for layer in LAYERS for name in ("a.qkv", "proj")] + ["merger.proj"],
            ["patch.proj", "modelxlayers.0.proj", "model.layers.10.proj"],
        ),
    ],
)
def test_else_an_expression_selects_whole_names(modules, others):
    chosen = target_modules(modules, others)
    assert isinstance(chosen, str)
    assert all(re.fullmatch(chosen, module) for module in modules)
    assert not any(re.fullmatch(chosen, module) for module in others)


def tensors_of(folder, config):
    return {name: HfFolder(folder).read(name) for name in tensor_names(config)}


@pytest.fixture
def run(tiny, build, groups, vila_folder, tmp_path, convert):
    """A run with adapters that started from a Hugging Face folder."""
    base = vila_folder(tie=False)

    def make(**fields):
        config = tiny(untie_embeddings_and_output_weights=True, **fields)
        model = build(config)
        load_weights(base, modules=model.modules, optimizers={}, groups=groups, config=config)
        torch.manual_seed(6)
        for adapter in local_adapters(model.modules).values():
            torch.nn.init.normal_(adapter.B, std=0.2)
        save_checkpoint(
            tmp_path / "run",
            1,
            modules=model.modules,
            optimizers={},
            scheduler=None,
            state={},
            groups=groups,
            config=config,
            carry_from=base,
        )
        return config, model, base

    return make


def test_there_and_back_every_part_merged(run, groups, convert, tmp_path):
    config, model, base = run(lora_rank=3, lora_alpha=7, lora_parts=PARTS, lora_use_rslora=True)
    for loader, saver, start, end in (
        ("megatron", "peft", "run", "adapter"),
        ("megatron", "hf", "run", "merged"),
        ("peft", "hf", "adapter", "back"),
        ("peft", "megatron", "adapter", "megatron"),
        ("megatron", "hf", "megatron", "again"),
    ):
        flags = ("--base-dir", base) if "peft" in (loader, saver) else ()
        status, _, error = convert(
            "--loader", loader, "--saver", saver, "--verify", *flags,
            "--load-dir", tmp_path / start, "--save-dir", tmp_path / end,
        )  # fmt: skip
        assert status == 0, error
    settings = json.loads((tmp_path / "adapter/llm" / SETTINGS).read_text())
    assert settings["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
    ]
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (3, 7, True)
    tower = json.loads((tmp_path / "adapter/vision_tower" / SETTINGS).read_text())
    # Its third layer never runs: PEFT must not put an adapter there.
    assert re.fullmatch(tower["target_modules"], "encoder.layers.1.mlp.fc1")
    assert not re.fullmatch(tower["target_modules"], "encoder.layers.2.mlp.fc1")
    merged = tensors_of(tmp_path / "merged", config)
    for name, tensor in export_named_tensors(model.modules, config, groups):
        assert torch.equal(tensor, merged[name]), name
    for end in ("back", "again"):
        for name, tensor in tensors_of(tmp_path / end, config).items():
            torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-7)
    for name, tensor in tensors_of(base, config).items():
        is_linear = tensor.dim() == 2 and re.search(r"proj\.weight|fc\d|layers\.[24]\.w", name)
        assert torch.equal(tensor, merged[name]) is not bool(is_linear), name


@pytest.mark.parametrize(
    ("fields", "change", "line"),
    [
        ({}, {}, "was trained without LoRA: give --saver hf"),
        ({"lora_rank": 3}, {"mm_projector": "layers.2.weight"}, "layers.2.weight differs"),
        (
            {"lora_rank": 3},
            {"llm": "model.layers.1.mlp.up_proj.weight"},
            "llm/model.layers.1.mlp.up_proj.weight differs: give the model that the run started",
        ),
    ],
)
def test_an_adapter_alone_must_be_the_whole_difference(
    fields, change, line, run, convert, tmp_path
):
    _, _, base = run(**fields)
    for part, name in change.items():
        file = base / part / "model.safetensors"
        tensors = load_file(file)
        tensors[name] = tensors[name] + 1e-3
        save_file(tensors, file, metadata={"format": "pt"})
    status, _, error = convert(
        "--loader", "megatron", "--saver", "peft", "--base-dir", base,
        "--load-dir", tmp_path / "run", "--save-dir", tmp_path / "adapter",
    )  # fmt: skip
    assert status == 2 and line in error and error.count("\n") == 1
    assert not (tmp_path / "adapter").exists()


def test_an_export_does_not_overwrite(run, convert, tmp_path):
    _, _, base = run(lora_rank=3)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/thesis.tex").write_text("x")
    status, _, error = convert(
        "--loader", "megatron", "--saver", "peft", "--base-dir", base,
        "--load-dir", tmp_path / "run", "--save-dir", tmp_path / "adapter",
    )  # fmt: skip
    assert status == 2 and "exists and is not empty" in error
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["thesis.tex"]


QWEN2 = find_family("qwen2")
MODULE = "base_model.model.model.layers.0.mlp.up_proj"


def adapter(folder: Path, settings: dict[str, object], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / SETTINGS).write_text(json.dumps({**usual, **settings}))
    save_file(tensors, folder / WEIGHTS)
    return folder


PAIR = {f"{MODULE}.lora_A.weight": torch.ones(2, 3), f"{MODULE}.lora_B.weight": torch.ones(5, 2)}
NAMES = ["llm/model.layers.0.mlp.up_proj.weight"]


def test_an_adapter_is_scaled_as_its_settings_say(tmp_path):
    folder = PeftFolder(adapter(tmp_path / "a", {"bias": "none", "rank_pattern": {}}, PAIR), QWEN2)
    folder.check(NAMES)
    assert torch.equal(folder.merged(NAMES[0], torch.ones(5, 3)), torch.full((5, 3), 5.0))
    assert torch.equal(folder.merged("llm/lm_head.weight", torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "tensors", "line"),
    [
        ({"peft_type": "IA3"}, PAIR, r"peft_type IA3 is not supported, only LORA"),
        ({"bias": "all"}, PAIR, r"bias all is not supported, only none"),
        ({"use_dora": True}, PAIR, r"use_dora True is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, PAIR, r"rank_pattern .* is not supported"),
        ({}, dict([next(iter(PAIR.items()))]), r"lacks .*up_proj\.lora_B\.weight"),
        ({}, dict([list(PAIR.items())[1]]), r"lacks .*up_proj\.lora_A\.weight"),
        (
            {},
            {**PAIR, "base_model.model.score.weight": torch.ones(2)},
            r"holds .*score\.weight \[2",
        ),
    ],
)
def test_an_adapter_that_cannot_be_taken_is_one_line(settings, tensors, line, tmp_path):
    place = adapter(tmp_path / "a", settings, tensors)
    with pytest.raises(UserError, match=line):
        PeftFolder(place, QWEN2).check(NAMES)


def test_no_adapter(tmp_path):
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        PeftFolder(tmp_path, QWEN2)
