"""Algorithms and their parts by name: the built-in ones are whole, and others can be added."""

from __future__ import annotations

import pytest

from megatron_longrl.algorithms.advantages import grpo
from megatron_longrl.algorithms.registry import (
    register_advantage,
    register_algorithm,
    register_policy_loss,
)
from megatron_longrl.config.algorithm_parts import ADVANTAGES, POLICY_LOSSES
from megatron_longrl.config.presets import ALGORITHMS, AlgorithmPreset
from megatron_longrl.config.schema import InvalidConfig
from megatron_longrl.errors import UserError
from megatron_longrl.rl.extra_generations import EXTRA_GENERATIONS
from tests.unit.made_up_config import make_config


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
def test_a_preset_names_parts_that_there_are(name: str) -> None:
    preset = ALGORITHMS.find(name)
    estimator = ADVANTAGES.find(preset.advantage)
    assert callable(estimator.load()) and callable(POLICY_LOSSES.find(preset.policy_loss).load())
    for extra in (*preset.extra_generations, *estimator.extra_generations):
        assert extra in EXTRA_GENERATIONS
    assert make_config(rl_algorithm=name).algorithm.advantage == preset.advantage


def test_a_name_is_given_once() -> None:
    with pytest.raises(UserError, match="advantage estimator 'grpo' is registered already"):
        register_advantage("grpo")(grpo)
    with pytest.raises(UserError, match="policy loss 'clip' is registered already"):
        register_policy_loss("clip")(POLICY_LOSSES.find("clip").load())
    with pytest.raises(UserError, match="algorithm 'dapo' is registered already"):
        register_algorithm("dapo", AlgorithmPreset("grpo", "clip", "token-mean"))


@pytest.mark.parametrize("field", ["rl_algorithm", "advantage", "policy_loss"])
def test_a_wrong_name_is_refused_with_those_that_there_are(field: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        make_config(**{field: "grop"})
    line = str(error.value)
    assert line.startswith(f"{field} = 'grop': expected '")
    names = {
        "rl_algorithm": ALGORITHMS.names(),
        "advantage": ADVANTAGES.names(),
        "policy_loss": POLICY_LOSSES.names(),
    }
    assert f"' or '{names[field][-1]}'" in line
    assert line.endswith("; did you mean 'grpo'?") is ("grpo" in names[field])
