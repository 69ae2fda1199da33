"""VILA folders: import, export, round trip, and what is wrong with them in one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_longrl.conversion.hf import HfFolder, config_from_hf, load_hf_weights
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.mapping import export_named_tensors, weight_stream
from megatron_longrl.conversion.tensor_folder import TensorFolder
from megatron_longrl.errors import UserError


def all_tensors(folder):
    """Every tensor of a folder by name, without the prefix that transformers may leave out."""
    found = {}
    for part in ("llm", "vision_tower", "mm_projector"):
        for file in (folder / part).glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                found[f"{part}/{name.removeprefix('vision_model.')}"] = tensor
    return found


def configure(tiny, folder, **changes):
    fields = config_from_hf(folder)
    return tiny(**{**fields, **changes})


def export(model, config, groups, folder, **options):
    with HfFolderWriter(folder, config, **options) as writer:
        for name, tensor in export_named_tensors(model.modules, config, groups):
            writer.add(name, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie", [True, False])
def test_round_trip_is_bit_exact(tie, dtype, tiny, groups, build, vila_folder, tmp_path):
    source = vila_folder(tie=tie, dtype=dtype)
    config = configure(tiny, source, bf16=dtype is torch.bfloat16)
    assert config.model.untie_embeddings_and_output_weights is not tie
    model = build(config)
    load_hf_weights(source, model.modules, config, groups)
    unused = HfFolder(source).unused_tensors(config)
    # A small limit makes several files, so that the index is tested.
    export(model, config, groups, tmp_path / "back", unused=unused, max_shard_bytes=9000)
    before, after = all_tensors(source), all_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(tensor, after[name]), name
    assert config_from_hf(tmp_path / "back") == config_from_hf(source)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_transformers_load_the_export(tiny, groups, build, tmp_path):
    from transformers import Qwen2ForCausalLM, SiglipVisionModel

    config = tiny()
    model = build(config, train=False)
    export(model, config, groups, tmp_path / "out")
    llm, report = Qwen2ForCausalLM.from_pretrained(tmp_path / "out/llm", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert llm.config.rope_parameters["rope_theta"] == config.rotary.rotary_base
    embedding = model.policy.module.embedding.word_embeddings.weight
    assert torch.equal(llm.model.embed_tokens.weight, embedding[: config.model.vocab_size])
    tower, report = SiglipVisionModel.from_pretrained(
        tmp_path / "out/vision_tower", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    # The layer after the selected one adds nothing.
    states = tower(torch.randn(2, 3, 28, 28), output_hidden_states=True).hidden_states
    assert len(states) == config.family.vision_num_layers + 1
    assert torch.equal(states[-1], states[-2])


def test_weight_stream_is_the_language_model_alone(tiny, groups, build):
    config = tiny()
    names = [name for name, _ in weight_stream(build(config).modules, config, groups)]
    assert names[0] == "model.embed_tokens.weight" and names[-1] == "model.norm.weight"
    assert all(name.startswith("model.") for name in names)


def test_an_export_that_fails_leaves_nothing(tiny, tmp_path):
    with pytest.raises(RuntimeError), HfFolderWriter(tmp_path / "out", tiny()) as writer:
        writer.add("llm/model.norm.weight", torch.ones(32))
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_overwrites(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        HfFolderWriter(tmp_path, tiny())


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


LLM = "llm/model.safetensors"
BROKEN = {
    "missing tensor": (
        lambda f: change_tensors(f / LLM, lambda t: t.pop("model.norm.weight")),
        r"llm lacks the tensor model\.norm\.weight",
    ),
    "shape": (
        lambda f: change_tensors(f / LLM, lambda t: t.update({"model.norm.weight": torch.ones(5)})),
        r"llm/model\.norm\.weight \[5\].*\[32\]",
    ),
    "fused shape": (
        lambda f: change_tensors(
            f / LLM,
            lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": torch.ones(8, 32)}),
        ),
        r"model\.layers\.1\.self_attn\.k_proj\.weight \[8, 32\]",
    ),
    "unknown tensor": (
        lambda f: change_tensors(f / LLM, lambda t: t.update(extra=torch.ones(1))),
        "llm holds the tensor extra",
    ),
    "untied copy": (
        lambda f: change_tensors(
            f / LLM, lambda t: t.update({"lm_head.weight": torch.ones(70, 32)})
        ),
        r"lm_head\.weight differs",
    ),
    "truncated": (
        lambda f: (f / LLM).write_bytes((f / LLM).read_bytes()[:-100]),
        r"model\.safetensors is truncated",
    ),
    "pickle": (
        lambda f: (f / LLM).rename(f / "llm/pytorch_model.bin"),
        r"pytorch_model\.bin is a pickle",
    ),
    "no folder": (lambda f: (f / "config.json").unlink(), r"config\.json does not exist"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_named(kind, tiny, groups, build, vila_folder):
    folder = vila_folder()
    config = configure(tiny, folder)
    damage, message = BROKEN[kind]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_hf_weights(folder, build(config, train=False).modules, config, groups)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("llm/config.json", {"architectures": ["Qwen2ForSequenceClassification"]}, "Sequence"),
        ("llm/config.json", {"model_type": "mamba"}, "model_type mamba is not supported"),
        ("llm/config.json", {"hidden_act": "gelu"}, "hidden_act gelu is not supported"),
        (
            "llm/config.json",
            {"rope_scaling": {"type": "longrope"}},
            "longrope is not supported",
        ),
        ("llm/config.json", {"rope_scaling": {"type": "yarn"}}, "lacks factor"),
        (
            "llm/config.json",
            {"rope_scaling": {"type": "linear", "factor": None}},
            "factor None is no finite",
        ),
        ("llm/config.json", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not"),
        ("mm_projector/config.json", {"mm_projector_type": "resampler"}, "resampler is not"),
        (
            "config.json",
            {"mm_vision_select_layer": None},
            "lacks the number mm_vision_select_layer",
        ),
    ],
)
def test_another_architecture_is_refused(file, change, message, vila_folder):
    folder = vila_folder()
    edit_json(folder / file, **change)
    with pytest.raises(UserError, match=message):
        config_from_hf(folder)


def test_an_index_that_names_a_missing_file(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    )
    with pytest.raises(UserError, match="model-00001-of-00001"):
        TensorFolder(tmp_path)


def test_config_from_hf_reads_old_and_new_rotary_settings(vila_folder):
    folder = vila_folder()
    path = folder / "llm/config.json"
    content = json.loads(path.read_text())
    content.pop("rope_parameters", None)
    path.write_text(json.dumps({**content, "rope_theta": 500.0}))
    assert config_from_hf(folder)["rotary_base"] == 500.0
    content.pop("rope_theta", None)
    new = {"rope_parameters": {"rope_theta": 600.0, "rope_type": "default"}}
    path.write_text(json.dumps({**content, **new}))
    assert config_from_hf(folder)["rotary_base"] == 600.0
