"""Flags as Megatron spells them."""

from __future__ import annotations

import re

import pytest

from megatron_longrl.cli.load import load_config
from megatron_longrl.cli.ranks import RankOptions
from megatron_longrl.config import Entry
from megatron_longrl.config.flags import opposite_flag
from megatron_longrl.config.names import FieldNames, flag
from megatron_longrl.config.schema import all_fields, all_sections
from megatron_longrl.errors import UserError


def test_megatrons_spelling_sets_the_fields(load):
    config = load("--num-attention-heads", "4", "--lr=3e-6", "--bf16", "--lr-decay-style", "linear")
    assert (config.model.num_attention_heads, config.training.lr, config.training.bf16) == (
        4,
        3e-6,
        True,
    )
    assert config.training.lr_decay_style == "linear"


@pytest.mark.parametrize("name", ["context-parallel-size", "multimodal-sequence-parallel-size"])
def test_both_names_of_the_sequence_dimension(load, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load(f"--{name}", "2").parallel.context_parallel_size == 2


def test_lists_take_several_values_and_repetitions(load):
    config = load("--train-data-path", "a.jsonl", "b", "--train-data-path", "c")
    assert config.data.train_data_path == ["a.jsonl", "b", "c"]


def test_switches_can_be_switched_off(load):
    config = load("--no-use-distributed-optimizer", "--no-shared-prompt", "--no-load-optim")
    assert not config.parallel.use_distributed_optimizer
    assert not config.rl.shared_prompt
    assert config.checkpoint.no_load_optim


def test_a_switch_of_the_recipe_that_begins_with_no_can_be_undone(load, recipe):
    recipe.write_text(recipe.read_text() + "no_load_rng: true\n")
    assert load().checkpoint.no_load_rng
    assert not load("--load-rng").checkpoint.no_load_rng


def test_negative_and_absent_values(load):
    config = load("--rollout-top-k", "-1", "--kl-target", "none", "--vision-feature-layer", "-1")
    assert config.rollout.top_k == -1
    assert config.algorithm.kl_target is None
    assert config.family.vision_feature_layer == -1


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--num-atention-heads", "--num-attention-heads"),
        ("--tensor-parallel-size", "--tensor-model-parallel-size"),
        ("--context_parallel_size", "--context-parallel-size"),
        ("--no-shared-promt", "--no-shared-prompt"),
    ],
)
def test_an_unknown_flag_names_the_nearest(load, flag, nearest):
    with pytest.raises(UserError) as error:
        load(flag, "4")
    assert str(error.value) == f"unknown flag '{flag}'; did you mean '{nearest}'?"


def test_flags_are_not_abbreviated(load):
    with pytest.raises(UserError, match="unknown flag '--num-attention'"):
        load("--num-attention", "4")


def test_a_word_without_a_flag_and_a_flag_without_its_value(load):
    with pytest.raises(UserError, match="unexpected argument 'grpo'"):
        load("grpo")
    with pytest.raises(UserError, match="--lr: expected one argument"):
        load("--lr")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--hidden-size", "wide"],
            "hidden_size = 'wide' (flag --hidden-size): expected a valid integer, "
            "unable to parse string as an integer",
        ),
        (["--lr", "-1"], "lr = '-1' (flag --lr): expected greater than or equal to 0"),
        (["--lr", "nan"], "lr = 'nan' (flag --lr): expected a finite number"),
        (
            ["--micro-batch-size", "0"],
            "micro_batch_size = '0' (flag --micro-batch-size): expected greater than 0",
        ),
        (
            ["--cp-comm-type", "ring"],
            "cp_comm_type = 'ring' (flag --cp-comm-type): expected 'all_gather', 'a2a' or 'p2p'",
        ),
        (
            ["--lora-parts", "projector", "tower"],
            "lora_parts = 'tower' (flag --lora-parts): expected one of audio_tower, "
            "language_model, projector, vision_tower",
        ),
    ],
)
def test_a_wrong_value_names_field_value_and_expectation(load, flags, line):
    with pytest.raises(UserError) as error:
        load(*flags)
    assert str(error.value) == line


@pytest.fixture
def help_of(capsys, monkeypatch):
    """The --help of a program on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def show(entry: Entry) -> str:
        with pytest.raises(SystemExit) as exit_:
            load_config(["--help"], entry)
        assert exit_.value.code == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("entry", ["sft", "rl", "evaluate"])
def test_help_shows_what_a_program_uses_grouped(help_of, entry):
    text = help_of(entry)
    for section in all_sections():
        fields = section.own_fields()
        shown = [n for n in fields if re.search(rf"\n  {flag(n)}[ ,\n]", text)]
        assert shown == [n for n, f in fields.items() if entry in section.programs_of(f)]
    assert "\nparallel:\n" in text
    assert "--mrope-section NUMBER ...\n" in text
    assert "(default: local)" in text


def test_help_is_readable_on_80_columns(help_of):
    text = help_of("rl")
    assert max(map(len, text.splitlines())) <= 80
    flags = [word for word in re.findall(r"--[a-z][a-z0-9-]*", text) if word != "--no-"]
    names = {flag(n) for field in all_fields() for n in FieldNames(all_sections()).of(field)}
    names |= {opposite_flag(name) for name in all_fields()}
    # A flag that is broken at a hyphen is none.
    ranks = {flag(name) for name in vars(RankOptions())}
    assert set(flags) - names == {"--help", "--config", "--print-config", *ranks}
    assert "--lora-target-modules NAME ...\n" in text
    one_line = " ".join(text.split())
    assert "One of linear_qkv, linear_proj, linear_fc1, linear_fc2, added_linear_qkv" in one_line
    assert "--rl-algorithm NAME Algorithm, whose values" in one_line
    assert "One of grpo, dapo, dr_grpo" in one_line
    assert "(default: on; --no-shared-prompt switches it off)" in one_line
    assert "--context-parallel-size, --multimodal-sequence-parallel-size RANKS" in one_line


def test_help_tells_a_default_that_is_zero_and_none_that_is_filled_in(help_of):
    one_line = " ".join(help_of("rl").split())
    assert "Learning rate at the end of the decay. (default: 0)" in one_line
    assert "by default 1e-5 for SFT and 1e-6 for RL. --bf16" in one_line


def test_every_field_is_documented():
    undocumented = [n for n, field in all_fields().items() if not field.description]
    assert undocumented == []


def test_only_one_rank_speaks(monkeypatch, capsys, recipe):
    monkeypatch.setenv("RANK", "1")
    for option in ("--help", "--print-config"):
        with pytest.raises(SystemExit):
            load_config(["--config", str(recipe), option], "rl")
    assert capsys.readouterr().out == ""
