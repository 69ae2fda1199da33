"""Recipes: precedence, includes, mistakes, and printing."""

from __future__ import annotations

import json
import logging

import pytest
import yaml

from megatron_longrl.cli.load import load_config
from megatron_longrl.config import Config
from megatron_longrl.config.recipe import recipe_names, to_yaml
from megatron_longrl.errors import UserError


def test_defaults_then_recipe_then_flags(load, recipe):
    assert load().training.seed == 1234
    recipe.write_text(recipe.read_text() + "seed: 5\n")
    assert load().training.seed == 5
    assert load("--seed", "6").training.seed == 6


def test_bases_are_read_first_and_relative_to_the_including_file(tmp_path, recipe):
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text("base: ../recipe.yaml\nlr: 2.0e-6\n")
    config = load_config(["--config", str(child)], "rl")
    assert (config.training.lr, config.training.train_iters) == (2e-6, 20)


def test_recipes_of_the_package_have_names_and_existing_paths_win(tmp_path, recipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "qwen2_5_vl/grpo.yaml"
    flags = ["--config", "own.yaml", "--config", "recipe.yaml", "--video-frames", "2"]
    flags += ["--save", "out"]
    (tmp_path / "own.yaml").write_text(f"base: {name}\n")
    assert name in recipe_names()
    assert load_config(flags, "rl").algorithm.grpo_clamp_eps_upper == 0.3
    (tmp_path / "qwen2_5_vl").mkdir()
    (tmp_path / name).write_text("grpo_clamp_eps_upper: 0.4\n")
    assert load_config(flags, "rl").algorithm.grpo_clamp_eps_upper == 0.4


def test_later_bases_and_later_recipes_win(tmp_path, recipe):
    (tmp_path / "a.yaml").write_text("seed: 1\nclip_grad: 0.5\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    both = tmp_path / "both.yaml"
    both.write_text("base: [recipe.yaml, a.yaml, b.yaml]\n")
    config = load_config(["--config", str(both)], "rl")
    assert (config.training.seed, config.training.clip_grad) == (2, 0.5)
    again = load_config(["--config", str(both), "--config", str(tmp_path / "a.yaml")], "rl")
    assert again.training.seed == 1


def test_a_recipe_may_use_an_alias_one_path_and_floats_without_a_point(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = "multimodal_sequence_parallel_size: 2\nlr: 1e-5\ntrain_data_path: one.jsonl\n"
    child = recipe.with_name("child.yaml")
    child.write_text("base: recipe.yaml\n" + text)
    config = load_config(["--config", str(child)], "rl")
    assert config.parallel.context_parallel_size == 2
    assert config.training.lr == 1e-5
    assert config.data.train_data_path == ["one.jsonl"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("num_layer: 3", "{path}:2: unknown key 'num_layer'; did you mean 'num_layers'?"),
        ("num-heads-total: 3", "{path}:2: unknown key 'num-heads-total'"),
        ("lr: 1\nlr: 2", "{path}:3: 'lr' is set a second time: keep one of them"),
        (
            "context_parallel_size: 1\nmultimodal_sequence_parallel_size: 2",
            "{path}:3: 'multimodal_sequence_parallel_size' sets context_parallel_size a second "
            "time: keep one of them",
        ),
        ("lr: [1", "{path}:3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "seq_length: long",
            "seq_length = 'long' ({path}:2): expected a valid integer, "
            "unable to parse string as an integer",
        ),
    ],
)
def test_mistakes_name_file_and_line(recipe, text, line):
    child = recipe.with_name("child.yaml")
    child.write_text(f"base: recipe.yaml\n{text}\n")
    with pytest.raises(UserError) as error:
        load_config(["--config", str(child)], "rl")
    assert str(error.value) == line.format(path=child)


def test_a_mistake_in_a_base_names_the_base(recipe):
    child = recipe.with_name("child.yaml")
    child.write_text("base: recipe.yaml\n")
    recipe.write_text("warmup: 3\n")
    with pytest.raises(UserError, match=r"recipe\.yaml:1: unknown key 'warmup'"):
        load_config(["--config", str(child)], "rl")


def test_a_recipe_that_is_missing_a_list_or_circular(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such file, .* are .*nvila_2b/sft\.yaml"):
        load_config(["--config", str(tmp_path / "none.yaml")], "rl")
    with pytest.raises(UserError, match="cannot read the recipe: Is a directory"):
        load_config(["--config", str(tmp_path)], "rl")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load_config(["--config", str(path)], "rl")
    path.write_text("lr: " + "[" * 3000)
    with pytest.raises(UserError, match="not valid YAML: nested too deeply"):
        load_config(["--config", str(path)], "rl")
    path.write_text("base: list.yaml\n")
    with pytest.raises(UserError, match="include each other"):
        load_config(["--config", str(path)], "rl")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("base: 3", "base must be a recipe or a list of recipes"),
        ("base: [a.yaml, 3]", "base must be a recipe or a list of recipes"),
        ("base: none.yaml", "base: none.yaml: no such file, and no recipe of this name"),
        ("lr: 2024-13-45", "not valid YAML: month must be in 1..12"),
    ],
)
def test_what_no_recipe_can_hold_is_told_with_its_line(tmp_path, text, problem):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"# A recipe.\n{text}\n")
    with pytest.raises(UserError) as error:
        load_config(["--config", str(path)], "rl")
    assert str(error.value).startswith(f"{path}:2: {problem}")


def test_a_base_that_is_used_twice_is_no_circle(tmp_path, recipe):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("base: recipe.yaml\n")
    both = tmp_path / "both.yaml"
    both.write_text("base: [a.yaml, b.yaml]\n")
    assert load_config(["--config", str(both)], "rl").training.train_iters == 20


def test_print_config_is_a_recipe_of_the_same_run(recipe, tmp_path, capsys):
    flags = ["--tensor-model-parallel-size", "2", "--lr", "3e-7", "--video-frames", "8"]
    with pytest.raises(SystemExit) as exit_:
        load_config(["--config", str(recipe), *flags, "--print-config"], "rl")
    assert exit_.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert set(yaml.safe_load(printed.read_text())) == set(
        load_config(["--config", str(recipe)], "rl").flat()
    )
    with pytest.raises(SystemExit):
        load_config(["--config", str(printed), "--print-config"], "rl")
    assert capsys.readouterr().out == printed.read_text()


def test_a_loaded_config_survives_yaml(make_config):
    config = make_config(video_frames=8, dual_clip=None, save="runs/ü")
    assert Config.of(yaml.safe_load(to_yaml(config))).flat() == config.flat()


def test_print_config_checks_the_rules(load, capsys):
    with pytest.raises(UserError, match="num_attention_heads"):
        load("--tensor-model-parallel-size", "3", "--print-config")
    assert capsys.readouterr().out == ""


def test_derived_fields_follow_a_changed_flag_also_from_a_printed_recipe(make_config, tmp_path):
    config = make_config()
    assert (config.model.kv_channels, config.training.lr_decay_iters) == (8, 20)
    printed = tmp_path / "printed.yaml"
    printed.write_text(to_yaml(config))
    flags = ["--train-iters", "50", "--hidden-size", "128"]
    changed = load_config(["--config", str(printed), *flags], "rl")
    assert (changed.model.kv_channels, changed.training.lr_decay_iters) == (16, 50)
    assert config.replace(num_attention_heads=4).model.kv_channels == 16
    assert make_config(num_query_groups=None).model.num_query_groups == 8


def test_sequence_parallel_is_switched_off_without_tensor_parallel(load, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        assert not load("--sequence-parallel").parallel.sequence_parallel
    assert "sequence_parallel is switched off" in caplog.text
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load(
        "--sequence-parallel", "--tensor-model-parallel-size", "2"
    ).parallel.sequence_parallel


def test_the_world_size_is_torchruns_else_one(load, monkeypatch):
    with pytest.raises(UserError, match="world size 1"):
        load("--tensor-model-parallel-size", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert load("--tensor-model-parallel-size", "2").parallel.data_parallel_size(4) == 2


def test_replace_checks_its_values(make_config):
    with pytest.raises(UserError, match="train_iters = -1"):
        make_config().replace(train_iters=-1)
    with pytest.raises(UserError, match="train_iter = 3"):
        make_config().replace(train_iter=3)


def test_a_hugging_face_checkpoint_describes_the_model(tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    settings = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 100,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text("{}")
    flags = ["--pretrained-checkpoint", str(folder), "--seq-length", "64", "--train-iters", "1"]
    flags += ["--lr", "1e-3", "--train-data-path", "rows.jsonl"]
    config = load_config(flags, "sft")
    assert (config.model.family, config.model.num_layers, config.model.kv_channels) == (
        "qwen3",
        2,
        32,
    )
    assert config.model.qk_layernorm and not config.model.add_qkv_bias
    assert config.data.tokenizer_model == str(folder)
    with pytest.raises(UserError, match=r"^num_layers = 3 \(flag --num-layers\), but"):
        load_config([*flags, "--num-layers", "3"], "sft")
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "mamba"}))
    with pytest.raises(UserError, match="model_type mamba is not supported"):
        load_config(flags, "sft")


def laughs(levels: int) -> str:
    """A list of ten lists of ten lists, each of which is written once."""
    lines = ["a0: &a0 [lol]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]"
        for level in range(1, levels + 1)
    ]
    return "\n".join(lines) + "\n"


def merges(levels: int) -> str:
    """The same by keys that are merged."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [
        f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}"
        for level in range(1, levels + 1)
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("make", [laughs, merges])
def test_aliases_of_aliases_are_counted_before_anything_is_made_of_them(make, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(make(60))
    with pytest.raises(UserError, match=r"recipe\.yaml: its aliases stand for more than 100000"):
        load_config(["--config", str(path)], "rl")


def test_an_alias_is_a_value_as_any_other(recipe):
    text = recipe.read_text().replace("lr: 0.0001", "lr: &rate 0.0001")
    assert "&rate" in text
    recipe.write_text(f"{text}min_lr: *rate\n")
    assert load_config(["--config", str(recipe)], "rl").training.min_lr == 1e-4


def test_a_recipe_with_a_number_or_a_size_without_end(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: " + ":".join(["1"] * 3000) + "\n")
    with pytest.raises(UserError, match=r"recipe\.yaml:1: a number has 5999 digits"):
        load_config(["--config", str(path)], "rl")
    path.write_text("# " + "a" * (1 << 20) + "\n")
    with pytest.raises(UserError, match=r"it has 1048579 bytes, and at most 1048576 are read"):
        load_config(["--config", str(path)], "rl")
