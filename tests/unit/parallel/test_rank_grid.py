"""The rank lists of every group, against those of core's globals and against slices by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.parallel_state import RankGenerator

from megatron_longrl.parallel.groups import rank_grid

SIZES = list(itertools.product((1, 2, 3), (1, 2, 4), (1, 2), (1, 3)))


def layout(tp: int, cp: int, pp: int) -> Any:
    return SimpleNamespace(
        tensor_model_parallel_size=tp,
        context_parallel_size=cp,
        pipeline_model_parallel_size=pp,
    )


@pytest.fixture(params=SIZES, ids=str)
def sizes(request, monkeypatch) -> tuple[int, int, int, int]:
    tp, cp, pp, dp = request.param
    monkeypatch.setenv("WORLD_SIZE", str(tp * cp * pp * dp))  # which the grid asks
    return tp, cp, pp, dp


def test_axes_have_the_ranks_that_core_gives_them(sizes):
    tp, cp, pp, dp = sizes
    grid = rank_grid(layout(tp, cp, pp), tp * cp * pp * dp)
    core = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order="tp-cp-ep-dp-pp")
    for axis in ("tp", "cp", "pp", "dp"):
        assert grid.get_rank_enum(axis) == core.get_ranks(axis)
    assert grid.get_rank_enum(["tp", "cp", "pp"]) == core.get_ranks("tp-cp-pp")


def test_groups_of_split_encoders_are_every_tp_th_rank(sizes):
    tp, cp, pp, dp = sizes
    world = list(range(tp * cp * pp * dp))
    grid = rank_grid(layout(tp, cp, pp), len(world))
    replicas = grid.get_rank_enum(["tp", "cp", "pp"])
    same = [world[first::tp] for first in range(tp)]
    assert grid.get_rank_enum(["cp", "dp", "pp"]) == same
    units = sorted(ranks[first::tp] for ranks in replicas for first in range(tp))
    assert sorted(grid.get_rank_enum(["cp", "pp"])) == units


def test_ranks_that_share_a_sequence_are_neighbours(sizes):
    tp, cp, pp, dp = sizes
    for size in [size for size in range(1, cp + 1) if cp % size == 0]:
        grid = rank_grid(layout(tp, cp, pp), tp * cp * pp * dp, size)
        blocks = sorted(
            ranks[first : first + size]
            for ranks in rank_grid(layout(tp, cp, pp), tp * cp * pp * dp).get_rank_enum("cp")
            for first in range(0, cp, size)
        )
        assert sorted(grid.get_rank_enum("cp")) == blocks
