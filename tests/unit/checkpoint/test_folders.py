"""Hugging Face folders as others leave them: processors, tied weights, strays, damage."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import HfFolder, config_from_hf
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.tensor_folder import TensorFolder
from megatron_longrl.errors import UserError
from tests.tiny_qwen_vl import hugging_face

CLIP = (0.48145466, 0.4578275, 0.40821073)
HALF = (0.5, 0.5, 0.5)


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def text_folder(tmp_path):
    """A tiny Qwen2 as transformers saves it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def make(**settings: Any) -> Path:
        torch.manual_seed(3)
        sizes = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }
        model = Qwen2ForCausalLM(Qwen2Config(**{**sizes, **settings}))
        model.save_pretrained(tmp_path / "hf")
        return tmp_path / "hf"

    return make


def change(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text())
    write(path, {**settings, **changes})


# ---- Processors ----


def vision_folder(folder: Path, family: str, files: Mapping[str, Mapping[str, Any]]) -> Path:
    write(folder / "config.json", {"model_type": family})
    for name, content in files.items():
        write(folder / name, content)
    return folder


def edges(least: int, most: int) -> dict[str, object]:
    return {"size": {"shortest_edge": least, "longest_edge": most}}


IMAGES = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}
VIDEOS = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 14}
NESTED = {
    "image_processor": {**IMAGES, **edges(11, 22)},
    "video_processor": {**VIDEOS, **edges(33, 44)},
}
OLD = {
    "preprocessor_config.json": {**IMAGES, "min_pixels": 55, "max_pixels": 66},
    "video_preprocessor_config.json": {**VIDEOS, **edges(77, 88)},
}
DEFAULTS = {"qwen2_5_vl": (100352, 602112), "qwen3_vl": (131072, 786432)}
DEFAULT_IMAGES = (3136, 1003520)


@pytest.mark.parametrize("family", DEFAULTS)
@pytest.mark.parametrize(
    ("files", "images", "videos"),
    [
        ({}, DEFAULT_IMAGES, None),
        ({"processor_config.json": NESTED}, (11, 22), (33, 44)),
        (OLD, (55, 66), (77, 88)),
        # The new place comes first, for each processor by itself.
        ({"processor_config.json": NESTED, **OLD}, (11, 22), (33, 44)),
        (
            {"processor_config.json": {"image_processor": NESTED["image_processor"]}, **OLD},
            (11, 22),
            (77, 88),
        ),
        (
            {"processor_config.json": {**NESTED, "image_processor": None}, **OLD},
            (55, 66),
            (33, 44),
        ),
        # Files of transformers 4 hold no processors.
        ({"processor_config.json": {"processor_class": "X"}, **OLD}, (55, 66), (77, 88)),
        # One file for both.
        ({"preprocessor_config.json": OLD["preprocessor_config.json"]}, (55, 66), (55, 66)),
        # Old names stand before the new one.
        (
            {"preprocessor_config.json": {**edges(1, 2), "min_pixels": 3, "max_pixels": 4}},
            (3, 4),
            (3, 4),
        ),
    ],
    ids=[
        *("none", "nested", "files", "nested and files", "images nested", "videos nested"),
        *("old common file", "one file", "old names first"),
    ],
)
def test_budgets_of_pixels(family, files, images, videos, tmp_path):
    fields = config_from_hf(vision_folder(tmp_path, family, files))
    assert (fields["image_min_pixels"], fields["image_max_pixels"]) == images
    assert (fields["video_min_pixels"], fields["video_max_pixels"]) == (videos or DEFAULTS[family])


def test_the_video_processor_of_qwen3_vl_knows_no_old_names(tmp_path):
    old = {"min_pixels": 3, "max_pixels": 4}
    files = {"video_preprocessor_config.json": old, "preprocessor_config.json": old}
    fields = config_from_hf(vision_folder(tmp_path, "qwen3_vl", files))
    assert (fields["video_min_pixels"], fields["video_max_pixels"]) == DEFAULTS["qwen3_vl"]
    assert (fields["image_min_pixels"], fields["image_max_pixels"]) == (3, 4)
    fields = config_from_hf(vision_folder(tmp_path, "qwen2_5_vl", files))
    assert (fields["video_min_pixels"], fields["video_max_pixels"]) == (3, 4)


@pytest.mark.parametrize("family", DEFAULTS)
def test_what_transformers_saves_is_read(family, tmp_path):
    """Its image processor that needs no torchvision; a video's has the same form."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(min_pixels=784, max_pixels=78400, image_mean=[0.1] * 3)
    saved = json.loads(processor.to_json_string())
    nested = {"image_processor": saved, "video_processor": {**saved, **edges(1568, 3136)}}
    for files in ({"processor_config.json": nested}, {"preprocessor_config.json": saved}):
        for path in tmp_path.iterdir():
            path.unlink()
        fields = config_from_hf(vision_folder(tmp_path, family, files))
        size = processor.size
        assert fields["image_min_pixels"] == size["shortest_edge"] == 784
        assert fields["image_max_pixels"] == size["longest_edge"] == 78400
        assert fields["image_mean"] == tuple(processor.image_mean)
        assert fields["image_std"] == tuple(processor.image_std)


@pytest.mark.parametrize(
    ("family", "images", "videos", "expected"),
    [
        ("qwen2_5_vl", {}, {}, (CLIP, None)),
        # Their classes have other defaults.
        ("qwen3_vl", {}, {}, (CLIP, HALF)),
        ("qwen3_vl", {"image_mean": HALF}, {"image_mean": HALF}, (HALF, None)),
        ("qwen3_vl", {"image_mean": HALF}, {"image_mean": CLIP}, (HALF, CLIP)),
        ("qwen2_5_vl", {"image_mean": 0.25}, {"image_mean": [0.25]}, ((0.25,) * 3, None)),
        ("qwen2_5_vl", {"image_mean": HALF}, {}, (HALF, CLIP)),
    ],
)
def test_normalisation_of_images_and_videos(family, images, videos, expected, tmp_path):
    files = {"processor_config.json": {"image_processor": images, "video_processor": videos}}
    fields = config_from_hf(vision_folder(tmp_path, family, files))
    assert (fields["image_mean"], fields.get("video_mean")) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (edges(5, 4), "fewest pixels of images, 5, are more than the most, 4"),
        ({"size": {"shortest_edge": 5}}, "size lacks longest_edge"),
        (edges(0, 4), "image_processor.size.shortest_edge 0 is no whole number"),
        (edges(1, True), "longest_edge True is no whole"),
        ({"size": 448}, "image_processor.size 448 is no JSON object"),
        ({"min_pixels": "many"}, "min_pixels many is no whole number"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std .* is not three positive numbers"),
        ({"image_mean": [0.5, 0.5]}, "image_mean .* is not three numbers"),
        ({"do_resize": False}, "do_resize False is not supported, only True"),
    ],
)
def test_processors_that_are_wrong(settings, message, tmp_path):
    files = {"processor_config.json": {**NESTED, "image_processor": {**IMAGES, **settings}}}
    with pytest.raises(UserError, match=rf"processor_config\.json: .*{message}"):
        config_from_hf(vision_folder(tmp_path, "qwen2_5_vl", files))


def test_videos_with_a_budget_that_grows_with_their_number(tmp_path):
    nested = {**NESTED, "video_processor": {**VIDEOS, "cap_pixels_per_frame": True}}
    with pytest.raises(UserError, match="cap_pixels_per_frame True is not supported"):
        config_from_hf(vision_folder(tmp_path, "qwen3_vl", {"processor_config.json": nested}))


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_vila_reads_both_and_an_export_has_what_came(file, vila_folder, tiny, groups, build):
    folder = vila_folder()
    settings = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (folder / "vision_tower/preprocessor_config.json").unlink()
    is_nested = file == "processor_config.json"
    write(folder / "vision_tower" / file, {"image_processor": settings} if is_nested else settings)
    fields = config_from_hf(folder)
    assert fields["image_mean"] == (0.1,) * 3 and fields["image_std"] == (0.2,) * 3
    config = tiny(**fields)
    out = folder.with_name("out")
    source = HfFolder(folder)
    with HfFolderWriter(out, config, files=source.files()) as writer:
        for mapping in source.family.mapping_table(config).expand():
            for name in mapping.hf_params if mapping.exported else ():
                writer.add(name, source.read(name))
    kept = {p.name for p in (out / "vision_tower").iterdir()} & {
        "processor_config.json",
        "preprocessor_config.json",
    }
    assert kept == {file}
    assert config_from_hf(out) == fields


# ---- Tied embeddings ----


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("weights", ["one", "equal", "different"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_tied_embeddings_are_those_of_transformers(family, weights, inner, outer, tmp_path):
    model = hugging_face(family)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (embedding,) = [name for name in tensors if name.endswith("embed_tokens.weight")]
    tensors.pop("lm_head.weight", None)
    if weights != "one":
        tensors["lm_head.weight"] = tensors[embedding] + (weights == "different")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"]["tie_word_embeddings"] = inner
    write(tmp_path / "config.json", {**settings, "tie_word_embeddings": outer})

    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    head, word = loaded.lm_head.weight, loaded.get_input_embeddings().weight
    is_tied = config_from_hf(tmp_path)["untie_embeddings_and_output_weights"] is False
    if "lm_head.weight" in report["missing_keys"]:
        # transformers draws it anew: refused.
        assert not is_tied
        config = Config.of({**config_from_hf(tmp_path), "seq_length": 64})
        with pytest.raises(UserError, match=r"lacks the tensor lm_head\.weight"):
            HfFolder(tmp_path).check(config)
        return
    assert is_tied is (head.data_ptr() == word.data_ptr())
    config = Config.of({**config_from_hf(tmp_path), "seq_length": 64})
    HfFolder(tmp_path).check(config)


def test_a_recipe_that_ties_what_differs_is_told_the_flag(text_folder):
    folder = text_folder(tie_word_embeddings=False)
    config = Config.of(
        {
            **config_from_hf(folder),
            "untie_embeddings_and_output_weights": False,
            "seq_length": 64,
        }
    )
    with pytest.raises(UserError, match="give --untie-embeddings-and-output-weights"):
        HfFolder(folder).check(config)


# ---- Files beside the weights ----


STRAYS = ["adapter_model", "consolidated", "zzz", "model-00001-of-00002", "model.fp16"]


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("is_sharded", [False, True], ids=["whole", "shards"])
def test_strays_are_nobodys(is_sharded, stray, text_folder):
    folder = text_folder(tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    if is_sharded:
        (folder / "model.safetensors").rename(folder / "shard-a.safetensors")
        write(
            folder / "model.safetensors.index.json",
            {"metadata": {}, "weight_map": dict.fromkeys(tensors, "shard-a.safetensors")},
        )
    other = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file({**other, "extra": torch.ones(1)}, folder / f"{stray}.safetensors")
    found = TensorFolder(folder)
    assert set(found.names()) == set(tensors)
    assert all(found.read(name).equal(tensor) for name, tensor in tensors.items())


def test_whole_weights_come_before_an_index(text_folder):
    folder = text_folder()
    write(folder / "model.safetensors.index.json", {"weight_map": {"x": "y.safetensors"}})
    assert "model.norm.weight" in TensorFolder(folder)


def test_other_names_alone_are_told(text_folder):
    folder = text_folder()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"does not read adapter_model\.safetensors either"):
        TensorFolder(folder)


QUANTIZED = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "awq": {"quant_method": "awq", "bits": 4},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "unknown": {"bits": 8},
}


@pytest.mark.parametrize("place", ["outer", "text_config"])
@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_folders_are_refused(method, place, tmp_path):
    settings: dict[str, Any] = {"model_type": "qwen2_5_vl"}
    quantized = {"quantization_config": QUANTIZED[method]}
    settings |= quantized if place == "outer" else {"text_config": quantized}
    write(tmp_path / "config.json", settings)
    with pytest.raises(UserError, match=rf"config\.json: .*quantized \({method}\).*in bf16"):
        HfFolder(tmp_path)


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_quantized_parts_are_refused(part, vila_folder):
    folder = vila_folder()
    change(folder / part / "config.json", quantization_config=QUANTIZED["awq"])
    with pytest.raises(UserError, match=rf"{part}/config\.json: .*quantized \(awq\)"):
        HfFolder(folder)


# ---- Damage ----


FILES = {
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark.*UTF-8 without one"),
    "no text": (b"\xff\xfe{}", "cannot be read as JSON"),
    "empty": (b"", "cannot be read as JSON"),
    "cut": (b'{"model_type": "qwen2"', "cannot be read as JSON"),
    "list": (b"[]", "holds no JSON object"),
    "number": (b"7", "holds no JSON object"),
    "nested": (b'{"a":' * 100_000, "cannot be read as JSON"),
    "digits": (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read as JSON"),
    "zeros": (bytes(64), "cannot be read as JSON"),
}


@pytest.mark.parametrize("damage", FILES)
def test_files_that_are_no_settings(damage, tmp_path):
    content, message = FILES[damage]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json .*{message}") as caught:
        config_from_hf(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pipe_or_a_folder_instead_of_a_file(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"config\.json is a named pipe, and only regular"):
        config_from_hf(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read: Is a directory"):
        config_from_hf(tmp_path)


ABSURD = [
    ("num_attention_heads", 0),
    ("num_attention_heads", 5),
    ("num_attention_heads", -4),
    ("num_hidden_layers", 2.5),
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 3),
    ("num_hidden_layers", True),
    ("num_key_value_heads", 0),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", 4),
    ("hidden_size", 10**9),
    ("hidden_size", 1 << 19),
    ("hidden_size", "32"),
    ("hidden_size", None),
    ("hidden_size", [32]),
    ("intermediate_size", 1 << 20),
    ("vocab_size", 1 << 24),
    ("vocab_size", 10**300),
    ("vocab_size", {}),
    ("rms_norm_eps", "small"),
    ("rms_norm_eps", -1.0),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", 10**400),
    ("max_position_embeddings", 0),
    ("tie_word_embeddings", "yes"),
    ("tie_word_embeddings", 1),
    ("head_dim", 7),
    ("head_dim", 16),
    ("rope_theta", float("inf")),
    ("rope_theta", 0),
    ("rope_scaling", "linear"),
    ("rope_scaling", {"rope_type": ["linear"]}),
    ("rope_scaling", {"rope_type": "linear", "factor": 0}),
    ("rope_scaling", {"rope_type": "yarn", "factor": 2, "beta_fast": "x"}),
    ("hidden_act", ["silu"]),
    ("architectures", "Qwen2ForCausalLM2"),
    ("model_type", ["qwen2"]),
    ("quantization_config", [1]),
]


@pytest.mark.parametrize(("name", "value"), ABSURD, ids=[f"{n}={v!r}"[:40] for n, v in ABSURD])
def test_settings_that_cannot_be(name, value, text_folder):
    folder = text_folder(rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("rope_parameters")
    write(folder / "config.json", {**settings, name: value})
    with pytest.raises(UserError, match=r"hf/config\.json") as caught:
        config_from_hf(folder)
    told = {"num_attention_heads": "heads", "num_key_value_heads": "heads", "head_dim": "head"}
    assert told.get(name, name.split("_")[0]) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


WEIGHTS = {
    "empty": b"",
    "zeros": bytes(4096),
    "header cut": header(b"{", 1000),
    "header huge": header(b"{}", 1 << 62),
    "no JSON": header(b"not JSON"),
    "list": header(b"[]"),
    "wrong offsets": header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}'),
    "shape of text": header(b'{"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}}') + bytes(8),
    "huge shape": header(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}'
    )
    + bytes(8),
    "unknown type": header(b'{"a":{"dtype":"F7","shape":[2],"data_offsets":[0,8]}}') + bytes(8),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_weights_that_are_none(damage, text_folder):
    folder = text_folder()
    (folder / "model.safetensors").write_bytes(WEIGHTS[damage])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or no safetensors"):
        config_from_hf(folder)


INDEXES = {
    "list": [],
    "no map": {},
    "map is a list": {"weight_map": ["a"]},
    "empty map": {"weight_map": {}},
    "number": {"weight_map": {"a": 1}},
    "null": {"weight_map": {"a": None}},
    "list of names": {"weight_map": {"a": ["m.safetensors"]}},
    "missing": {"weight_map": {"a": "gone.safetensors"}},
    "outside": {"weight_map": {"a": "../hf.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "nul": {"weight_map": {"a": "a\0b.safetensors"}},
    "surrogate": {"weight_map": {"a": "\ud800.safetensors"}},
    "folder": {"weight_map": {"a": "."}},
    "empty name": {"weight_map": {"a": ""}},
}


@pytest.mark.parametrize("damage", INDEXES)
def test_indexes_that_are_none(damage, text_folder):
    folder = text_folder()
    (folder / "model.safetensors").unlink()
    write(folder / "model.safetensors.index.json", INDEXES[damage])
    with pytest.raises(UserError, match=r"index\.json|gone\.safetensors is named by") as caught:
        config_from_hf(folder)
    assert str(caught.value).isprintable()


def test_settings_fit_weights_in_every_part(vila_folder):
    folder = vila_folder()
    for file, name, value in (
        ("llm/config.json", "hidden_size", 64),
        ("vision_tower/config.json", "intermediate_size", 25),
        ("vision_tower/config.json", "num_hidden_layers", 9),
        ("vision_tower/config.json", "image_size", 35),
        ("vision_tower/config.json", "patch_size", 6),
    ):
        before = (folder / file).read_text()
        change(folder / file, **{name: value})
        with pytest.raises(UserError, match=rf"{file}: .*{name}.* does not fit"):
            config_from_hf(folder)
        (folder / file).write_text(before)
    config_from_hf(folder)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_settings_of_a_tower_fit_its_weights(family, tmp_path):
    hugging_face(family).save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    for name, value in (
        *(("hidden_size", 64), ("depth", 5), ("intermediate_size", 41), ("patch_size", 5)),
        *((("num_position_embeddings", 49),) if family == "qwen3_vl" else ()),
        *(("hidden_size", 1 << 20), ("depth", 10**9), ("num_heads", 0)),
    ):
        vision = {**before["vision_config"], name: value}
        write(tmp_path / "config.json", {**before, "vision_config": vision})
        with pytest.raises(UserError, match=rf"config\.json: .*{name}"):
            config_from_hf(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mm_vision_select_layer", 0, "is no layer of the vision tower with 3: give one from 1"),
        ("mm_vision_select_layer", -4, "is no layer of the vision tower with 3"),
        ("mm_vision_select_layer", 4, "is no layer"),
        ("mm_vision_select_layer", -2.5, "is no whole number"),
        ("mm_vision_select_layer", True, "is no whole number"),
        ("dynamic_s2", "no", "is neither true nor false"),
        ("video_encoder", "{", "is no JSON object"),
        ("video_encoder", {"pool_sizes": [[8, 1]]}, "pool_size.* is no list of 3 whole numbers"),
        ("video_encoder", {"pool_sizes": [[0, 1, 1]]}, "pool_sizes"),
        ("max_tiles", 0, "is no whole number"),
        ("min_tiles", 13, "is more than max_tiles 12"),
    ],
)
def test_settings_of_vila_that_cannot_be(name, value, message, vila_folder):
    folder = vila_folder()
    change(folder / "config.json", **{name: value})
    with pytest.raises(UserError, match=rf"vila/config\.json: .*{message}"):
        config_from_hf(folder)
