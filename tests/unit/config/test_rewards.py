"""Which rewards a run asks for."""

from __future__ import annotations

import pytest
import yaml

from megatron_longrl.cli.load import load_config
from megatron_longrl.config import Config
from megatron_longrl.config.recipe import to_yaml
from megatron_longrl.errors import UserError
from megatron_longrl.rewards.terms import RewardTerm, reward_terms


def test_the_default(make_config):
    assert reward_terms(make_config().reward) == [
        RewardTerm("accuracy", 0.9),
        RewardTerm("format", 0.1),
    ]


def test_functions_alone_and_beside_others(load):
    alone = load("--reward-function", "a/mine.py:brevity")
    assert reward_terms(alone.reward) == [RewardTerm("brevity", 1.0, "a/mine.py")]
    both = load(
        *("--rewards", "accuracy", "rouge_1=0.5"),
        *("--reward-function", "mine.py:one=0.25", "b=c.py:two", "--reward-function", "d.py:x=-1"),
    )
    assert reward_terms(both.reward) == [
        RewardTerm("accuracy", 1.0),
        RewardTerm("rouge_1", 0.5),
        RewardTerm("one", 0.25, "mine.py"),
        RewardTerm("two", 1.0, "b=c.py"),
        RewardTerm("x", -1.0, "d.py"),
    ]


def test_a_recipe_names_them_as_flags_do(recipe):
    recipe.write_text(
        recipe.read_text()
        + "rewards: [accuracy=0.5, judge]\nreward_function: mine.py:f\n"
        + "reward_kwargs: {limit: 3, words: [a, b]}\n"
        + "judge_url: http://h/v1\njudge_model: m\n"
    )
    config = load_config(["--config", str(recipe)], "rl")
    assert [term.name for term in reward_terms(config.reward)] == ["accuracy", "judge", "f"]
    assert config.reward.reward_kwargs == {"limit": 3, "words": ["a", "b"]}


def test_keyword_arguments_as_a_flag(load):
    config = load("--reward-function", "m.py:f", "--reward-kwargs", '{"limit": 3, "who": "ü"}')
    assert config.reward.reward_kwargs == {"limit": 3, "who": "ü"}
    assert (
        Config.of(yaml.safe_load(to_yaml(config))).reward.reward_kwargs
        == config.reward.reward_kwargs
    )


@pytest.mark.parametrize("flags", [[], ["--reward-function", "m.py:f=0.5"], ["--rewards", "math"]])
def test_a_printed_recipe_asks_for_the_same(load, tmp_path, flags):
    config = load(*flags)
    printed = tmp_path / "printed.yaml"
    printed.write_text(to_yaml(config))
    again = load_config(["--config", str(printed)], "rl")
    assert reward_terms(again.reward) == reward_terms(config.reward)


@pytest.mark.parametrize("value", ["{", "[1]", "3", "text"])
def test_keyword_arguments_that_are_no_mapping(load, value):
    with pytest.raises(UserError) as error:
        load("--reward-function", "m.py:f", "--reward-kwargs", value)
    assert str(error.value) == (
        "reward_kwargs = (not shown) (flag --reward-kwargs): expected a JSON object of names and "
        "values"
    )


def test_a_date_cannot_reach_a_function(make_config):
    with pytest.raises(UserError, match="expected a JSON object"):
        make_config().replace(reward_kwargs=yaml.safe_load("{since: 2026-01-01}"))


JUDGE = ("--rewards", "judge")


@pytest.mark.parametrize("entry", ["rl", "evaluate"])
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--rewards", "acuracy"), "rewards: 'acuracy' is not known; did you mean 'accuracy'?;"),
        (("--rewards", "m.py:f"), "and your own by --reward-function FILE.py:NAME"),
        (("--rewards", "accuracy="), "'accuracy=': the weight '' is not a number"),
        (("--rewards", "accuracy=high"), "'accuracy=high': the weight 'high' is not a number"),
        (("--rewards", "accuracy=nan"), "'accuracy=nan': the weight 'nan' is not a number"),
        (("--rewards", "format", "format=2"), "two rewards are called 'format'"),
        (
            ("--rewards", "accuracy=0", "format=0"),
            "rewards and reward_function give nothing a weight, every reward would be 0",
        ),
        (("--reward-function", "mine.py"), "'mine.py' is not of the form FILE.py:NAME"),
        (("--reward-function", "mine:f"), "'mine:f' is not of the form FILE.py:NAME"),
        (("--reward-function", "m.py:f-g"), "'m.py:f-g' is not of the form"),
        (("--reward-function", "m.py:f=x"), "the weight 'x' is not a number"),
        (("--reward-function", "m.py:format"), "give m.py:format another name"),
        (("--reward-function", "m.py:mean"), "give m.py:mean another name"),
        (("--reward-function", "m.py:f", "n.py:f"), "two rewards are called 'f'"),
        (("--reward-kwargs", '{"a": 1}'), "reward_kwargs is set without reward_function"),
        (JUDGE, "rewards has judge, but judge_url is not set: give --judge-url ..."),
        ((*JUDGE, "--judge-url", "http://h"), "judge_model is not set: give --judge-model ..."),
        (
            ("--reward-step-timeout", "600"),
            "reward_step_timeout (600 s) is not shorter than distributed_timeout_minutes (10)",
        ),
    ],
)
def test_mistakes(recipe, entry, flags, line):
    with pytest.raises(UserError) as error:
        load_config(["--config", str(recipe), *flags], entry)
    assert line in str(error.value)


def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(load):
    with pytest.raises(UserError, match="not the name of an environment variable") as error:
        load("--judge-api-key-variable", "sk-abc123")
    assert "abc123" not in str(error.value)


def test_sft_asks_for_no_reward(recipe):
    load_config(["--config", str(recipe), "--rewards", "judge"], "sft")


def test_credentials_are_refused_without_being_shown(load):
    with pytest.raises(UserError) as told:
        load("--reward-function", "m.py:f", "--reward-kwargs", '{"api_key": "sk-1234"}')
    assert "reward_kwargs.api_key holds credentials" in str(told.value)
    assert "${NAME}" in str(told.value) and "sk-1234" not in str(told.value)
