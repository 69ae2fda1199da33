"""Objects of a user's own that cannot be used are told in one line, and break no other run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from megatron_longrl.cli.rules import validate_layout
from megatron_longrl.config import Config
from megatron_longrl.config.engines import ENGINES
from megatron_longrl.config.family import FAMILY_SECTIONS, FamilySection
from megatron_longrl.config.flags import build_parser, parse_flags
from megatron_longrl.config.names import FieldNames
from megatron_longrl.config.presets import ALGORITHMS, AlgorithmPreset, FlowPreset
from megatron_longrl.config.schema import InvalidConfig, all_sections
from megatron_longrl.errors import ConfigError, UserError
from megatron_longrl.rewards.registry import REWARDS, Reward
from megatron_longrl.rewards.rules import scoring_rules
from tests.unit.made_up_config import make_config


def grpo(**changes: Any) -> AlgorithmPreset:
    return replace(AlgorithmPreset("grpo", "clip", "token-mean"), **changes)


def flow(**changes: Any) -> FlowPreset:
    return FlowPreset(**changes)


class TwoRates(FamilySection):
    """two rates: a field that another section has"""

    lr: float = 0.0
    """The second rate."""


@pytest.mark.parametrize(
    ("registry", "value", "told"),
    [
        (ENGINES, len, "an object of type builtin_function_or_method .* EngineKind has to be"),
        (REWARDS, grpo(), "an object of type AlgorithmPreset .* a Reward has to be"),
        (ALGORITHMS, Reward(len), "an object of type Reward .* a AlgorithmPreset has to be"),
        (ALGORITHMS, grpo(dual_clip="3"), "dual_clip = '3': expected a valid number"),
        (ALGORITHMS, grpo(kl_type="k9"), "kl_type = 'k9': expected 'k1'"),
        (ALGORITHMS, grpo(flow=flow(window="a")), "window = 'a': expected a valid"),
        (ALGORITHMS, grpo(flow=3), "flow = 3: expected"),
        (FAMILY_SECTIONS, FamilySection(), "a subclass of FamilySection has to be"),
        (FAMILY_SECTIONS, TwoRates, "TwoRates declares the field lr, which TrainingSection has"),
    ],
)
def test_an_object_that_is_none(registry, value, told):
    with pytest.raises(UserError, match=f"{registry.kind} 'mine': .*{told}"):
        registry.register("mine", value)
    assert "mine" not in registry


@pytest.mark.parametrize("name", ["accuracy", "judge", "mean"])
def test_a_reward_takes_no_name_that_means_something(name):
    with pytest.raises(UserError, match=f"reward '{name}': this name means something else"):
        REWARDS.register(name, Reward(len))


@pytest.mark.parametrize(
    ("preset", "told"),
    [
        (grpo(policy_loss="nope"), "policy_loss = 'nope' .*: expected 'clip', 'gspo'"),
        (grpo(grpo_clamp_eps_lower=-1.0), "grpo_clamp_eps_lower = -1.0 .*: expected"),
    ],
)
def test_the_parts_of_an_algorithm_are_checked_as_if_they_were_given(preset, told, monkeypatch):
    monkeypatch.setitem(ALGORITHMS._registered, "mine", preset)
    with pytest.raises(InvalidConfig, match=told) as caught:
        make_config(rl_algorithm="mine")
    assert "(set by --rl-algorithm mine)" in str(caught.value)


def test_a_configuration_needs_no_other_import():
    code = (
        "from megatron_longrl.config import Config\n"
        "config = Config.of({'model_family': 'qwen3_vl', 'seq_length': 8})\n"
        "print(type(config.family).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Qwen3VLSection\n"


def test_an_old_name_is_told_with_the_new_one():
    with pytest.raises(InvalidConfig, match="mrsp_stages = 2: this field is called mrsp_mode now"):
        make_config(mrsp_stages=2)


def test_a_value_may_begin_with_a_dash():
    sections = all_sections()
    parser = build_parser(sections, FieldNames(sections), None, "x")
    given = parse_flags(
        parser, ["--keep-best-checkpoint-by", "-lm loss", "--eval-top-k", "-1", "--bf16"]
    )
    assert given == {"keep_best_checkpoint_by": "-lm loss", "eval_top_k": "-1", "bf16": True}
    with pytest.raises(ConfigError, match="expected one argument"):
        parse_flags(parser, ["--keep-best-checkpoint-by", "--bf16"])


def test_a_reward_of_pictures_reads_no_text():
    config = make_config(rewards=["jpeg_compressibility"])
    (line, *_) = scoring_rules(config.reward)
    assert line.startswith("rewards jpeg_compressibility look at pictures")


def test_fields_that_a_policy_does_not_read_are_refused_by_name():
    """Values that are the defaults, as saved configurations list them, are not."""
    from tests.tiny_sd3 import FIELDS  # it imports torch

    config = Config.of(
        {**FIELDS, "rl_algorithm": "flow_grpo", "rollout_max_tokens": 1024, "diffusers_folder": "x"}
    )
    validate_layout(config, 1)
    with pytest.raises(ConfigError) as caught:
        validate_layout(config.replace(policy_loss="pg", rollout_lag=1), 1)
    assert str(caught.value) == (
        "model_family sd3 does not read policy_loss, rollout_lag: leave --policy-loss, "
        "--rollout-lag out"
    )
