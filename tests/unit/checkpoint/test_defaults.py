"""Settings that a ``config.json`` does not write mean what they mean to transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.conversion.hf import config_from_hf
from megatron_longrl.errors import UserError
from megatron_longrl.models.text.kinds import KINDS, QWEN2_5_VL_DEFAULTS, QWEN3_VL_DEFAULTS

OURS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "norm_epsilon",
}
TOWER = {
    "depth": "vision_num_layers",
    "hidden_size": "vision_hidden_size",
    "intermediate_size": "vision_ffn_hidden_size",
    "num_heads": "vision_num_attention_heads",
    "patch_size": "vision_patch_size",
    "temporal_patch_size": "vision_temporal_patch_size",
}
MORE = {
    "qwen2_5_vl": {
        "window_size": "vision_window_size",
        "fullatt_block_indexes": "vision_full_attention_layers",
        "tokens_per_second": "vision_tokens_per_second",
    },
    "qwen3_vl": {
        "num_position_embeddings": "vision_num_position_embeddings",
        "deepstack_visual_indexes": "vision_deepstack_layers",
    },
}


def fields_of(folder: Path, **settings: Any) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(settings))
    return config_from_hf(folder)


def theirs(family: str, **settings: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **settings)


def rope_of(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in fields if name.startswith(("rotary", "rope", "llama3"))}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "qwen2_5_vl", "qwen3_vl"])
def test_a_file_that_writes_nothing(family, tmp_path):
    fields, config = fields_of(tmp_path, model_type=family), theirs(family)
    text = config.get_text_config()
    assert {ours: getattr(text, name) for name, ours in OURS.items()} == {
        ours: fields[ours] for ours in OURS.values()
    }
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert fields["kv_channels"] == width
    assert fields["rotary_base"] == text.rope_parameters["rope_theta"]
    assert fields["untie_embeddings_and_output_weights"] is not config.tie_word_embeddings
    for name, ours in {**TOWER, **MORE.get(family, {})}.items() if family in MORE else ():
        value = getattr(config.vision_config, name)
        assert fields[ours] == (tuple(value) if isinstance(value, list) else value), name


@pytest.mark.parametrize("family", KINDS)
def test_the_table_of_language_models_is_transformers(family):
    config, table = theirs(family), dataclasses.asdict(KINDS[family].defaults)
    if table["num_key_value_heads"] is None:
        table["num_key_value_heads"] = config.num_attention_heads
    if table["head_dim"] is None:
        table.pop("head_dim")
    assert table.pop("rope_theta") == config.rope_parameters["rope_theta"]
    assert table == {name: getattr(config, name) for name in table}


@pytest.mark.parametrize("defaults", [QWEN2_5_VL_DEFAULTS, QWEN3_VL_DEFAULTS])
def test_defaults_are_those_of_no_other_family(defaults):
    assert defaults not in [kind.defaults for kind in KINDS.values()]


def test_a_tower_of_vila_that_writes_nothing(vila_folder):
    from transformers import SiglipVisionConfig

    folder, default = vila_folder(), SiglipVisionConfig()
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()  # They have other sizes.
    (folder / "vision_tower/config.json").write_text('{"architectures": ["SiglipVisionModel"]}')
    fields = config_from_hf(folder)
    assert fields["vision_hidden_size"] == default.hidden_size
    assert fields["vision_num_layers"] == default.num_hidden_layers
    assert fields["vision_num_attention_heads"] == default.num_attention_heads
    assert fields["vision_ffn_hidden_size"] == default.intermediate_size
    assert fields["vision_image_size"] == default.image_size
    assert fields["vision_patch_size"] == default.patch_size
    assert fields["vision_norm_epsilon"] == default.layer_norm_eps


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.5, "high_freq_factor": 3.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 600.0}},
        {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 600.0}},
        {"rope_theta": 500.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 600.0},
        },
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 600.0}},
        {"rope_scaling": None},
        {"rope_scaling": LLAMA3},
        {"rope_scaling": LLAMA3, "max_position_embeddings": 512},
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64}},
    ],
    ids=lambda settings: " ".join(settings),
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen2_5_vl"])
def test_rotary_settings_in_all_their_places(family, settings, tmp_path):
    fields = fields_of(tmp_path, model_type=family, **settings)
    rope = theirs(family, **json.loads(json.dumps(settings))).get_text_config().rope_parameters
    assert fields["rotary_base"] == rope["rope_theta"]
    assert fields.get("rope_scaling_factor") == rope.get("factor")
    if rope["rope_type"] == "llama3":
        for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"):
            assert fields[f"llama3_{name}"] == rope[name]


def test_the_frequencies_of_llama_3_are_transformers(tmp_path, tiny):
    """Also with the original context that is not written."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from megatron_longrl.models.rotary import scaled_frequencies

    settings = {"rope_scaling": LLAMA3, "max_position_embeddings": 700, "head_dim": 64}
    fields = fields_of(tmp_path, model_type="llama", **settings)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs("llama", **settings))
    plain = 1 / fields["rotary_base"] ** (torch.arange(0, 64, 2) / 64)
    found = scaled_frequencies(plain, tiny(seq_length=64, **rope_of(fields)).rotary)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert not torch.allclose(found, plain)


@pytest.mark.parametrize(
    ("settings", "groups"),
    [({"num_key_value_heads": None}, 8), ({"num_key_value_heads": 2}, 2), ({}, 8)],
    ids=["null", "2", "absent"],
)
def test_key_and_value_heads_of_a_llama(settings, groups, tmp_path):
    settings = {"num_attention_heads": 8, **settings}
    assert fields_of(tmp_path, model_type="llama", **settings)["num_query_groups"] == groups
    assert theirs("llama", **settings).num_key_value_heads == groups


def test_absent_key_and_value_heads_that_do_not_divide(tmp_path):
    with pytest.raises(UserError, match="8 is no multiple of num_key_value_heads 32"):
        fields_of(tmp_path, model_type="qwen2", num_attention_heads=8, hidden_size=64)


@pytest.mark.parametrize("inner", [None, False, True])
@pytest.mark.parametrize("outer", [None, False, True])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_tied_embeddings_by_settings_alone(family, outer, inner, tmp_path):
    text = {} if inner is None else {"tie_word_embeddings": inner}
    settings = {} if outer is None else {"tie_word_embeddings": outer}
    settings["text_config"] = {**text, "vocab_size": 99}
    fields = fields_of(tmp_path, model_type=family, **settings)
    is_tied = theirs(family, **settings).tie_word_embeddings
    assert fields["untie_embeddings_and_output_weights"] is not is_tied


def test_an_inner_object_stands_alone(tmp_path):
    """Beside text_config, settings of the language model among the outer ones are nobody's."""
    settings = {"rms_norm_eps": 1e-3, "text_config": {"hidden_size": 64 * 128, "vocab_size": 7}}
    fields = fields_of(tmp_path, model_type="qwen2_5_vl", **settings)
    text = theirs("qwen2_5_vl", **settings).text_config
    assert fields["norm_epsilon"] == text.rms_norm_eps == 1e-5
    assert fields["vocab_size"] == 7
