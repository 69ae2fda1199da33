"""Which tensor-parallel sizes of an engine fit a replica."""

from __future__ import annotations

import pytest

from megatron_longrl.rollout.vllm.fit import why_not_divisible

CONFIG = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 500,
}
ONE_NODE = ["a"] * 8


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_contiguous_replica_takes_every_divisor(size: int) -> None:
    assert why_not_divisible(size, CONFIG, [4, 5, 6, 7], ONE_NODE) is None


def test_heads_and_widths_must_divide() -> None:
    assert "attention heads (8)" in str(why_not_divisible(3, CONFIG, range(3), ONE_NODE))
    narrow = CONFIG | {"intermediate_size": 90}
    assert "width (90)" in str(why_not_divisible(4, narrow, range(4), ONE_NODE))


def test_key_value_heads_divide_or_are_replicated() -> None:
    config = CONFIG | {"num_attention_heads": 12, "num_key_value_heads": 3}
    assert "key/value heads (3)" in str(why_not_divisible(2, config, range(2), ONE_NODE))
    assert why_not_divisible(3, config | {"vocab_size": 192}, range(3), ONE_NODE) is None


def test_blocks_of_the_world_may_not_cross_replicas() -> None:
    # tp1 pp2 dp2 in Megatron's order: the replicas are {0, 2} and {1, 3}.
    assert "ranks 0-1 belong to different model replicas" in str(
        why_not_divisible(2, CONFIG, [0, 2], ONE_NODE)
    )
    # tp2 pp2 dp2: the replicas are {0, 1, 4, 5} and {2, 3, 6, 7}; engines of two ranks fit.
    assert why_not_divisible(2, CONFIG, [0, 1, 4, 5], ONE_NODE) is None
    assert why_not_divisible(4, CONFIG, [0, 1, 4, 5], ONE_NODE) is not None


def test_an_engine_lies_on_one_node() -> None:
    hosts = ["a", "a", "b", "b"]
    assert why_not_divisible(2, CONFIG, range(4), hosts) is None
    assert "different nodes" in str(why_not_divisible(4, CONFIG, range(4), hosts))
