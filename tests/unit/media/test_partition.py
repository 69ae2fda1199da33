"""Shares of frames: everything once, balanced by cost, videos whole where that costs nothing."""

from __future__ import annotations

import itertools
import random

import pytest

from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.partition import balance_greedy, partition_units, split_by_cost


def video(name: str, frames: int, size: int = 8, source_pixels: int = 0) -> VideoSpec:
    view = PreprocessSpec(size, size, (0.5,) * 3, (0.5,) * 3)
    return VideoSpec(name, name, tuple(range(frames)), view, source_pixels)


@pytest.mark.parametrize(("total", "parts"), [(37, 2), (1, 4), (0, 2), (8, 3), (1001, 7)])
def test_equal_costs_are_split_evenly_and_completely(total, parts):
    spans = split_by_cost([2.5] * total, parts)
    assert [i for span in spans for i in span] == list(range(total))
    lengths = [len(span) for span in spans]
    assert len(lengths) == parts
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_every_cut_is_the_nearest_to_its_target(seed):
    generator = random.Random(seed)
    costs = [generator.choice([1.0, 4.0, 9.0]) for _ in range(generator.randint(1, 30))]
    parts = generator.randint(1, 5)
    ends = [0.0, *itertools.accumulate(costs)]
    spans = split_by_cost(costs, parts)
    assert [i for span in spans for i in span] == list(range(len(costs)))
    for number, span in enumerate(spans[:-1], start=1):
        target = ends[-1] * number / parts
        assert abs(ends[span.stop] - target) == min(abs(end - target) for end in ends)


@pytest.mark.parametrize("seed", range(20))
def test_dealt_items_are_all_there_and_balanced_within_the_bound_of_greedy_dealing(seed):
    generator = random.Random(seed)
    costs = [generator.uniform(1, 9) for _ in range(generator.randint(0, 9))]
    parts = generator.randint(1, 3)
    dealt = balance_greedy(costs, parts)
    assert sorted(i for part in dealt for i in part) == list(range(len(costs)))
    best = min(
        max(sum(c for c, p in zip(costs, places, strict=True) if p == q) for q in range(parts))
        for places in itertools.product(range(parts), repeat=len(costs))
    )
    largest = max(sum(costs[i] for i in part) for part in dealt)
    assert largest <= best * (4 / 3 - 1 / (3 * parts)) + 1e-9  # Graham 1969


def test_frames_of_two_sizes_are_split_by_pixels_not_by_count():
    shares = partition_units([video("large", 10, 16), video("small", 40, 8)], 2, "always")
    assert [sum(len(frames) for _, frames in share) for share in shares] == [10, 40]


def test_a_long_video_is_cut_inside_itself():
    shares = partition_units([video("a", 30), video("b", 1), video("c", 6)], 2, "auto")
    assert shares == [
        [(0, range(18))],
        [(0, range(18, 30)), (1, range(1)), (2, range(6))],
    ]


def test_videos_of_equal_length_stay_whole_unless_they_must_be_cut():
    videos = [video("a", 5), video("b", 7), video("c", 7), video("d", 5)]
    shares = partition_units(videos, 2, "auto")
    assert [[v for v, _ in share] for share in shares] == [[0, 1], [2, 3]]
    cut = partition_units([video("a", 5), video("b", 7)], 2, "always")
    assert cut == [[(0, range(5)), (1, range(1))], [(1, range(1, 7))]]


def test_whole_videos_only():
    shares = partition_units([video("a", 9), video("b", 1)], 3, "never")
    assert shares == [[(0, range(9))], [(1, range(1))], []]


def test_large_files_cost_more_than_small_ones():
    """Ten frames of 4 K and forty of a thumbnail, to a tower of 8 pixels: not 25 frames each."""
    shares = partition_units([video("4K", 10, source_pixels=5120), video("small", 40)], 2, "always")
    assert [sum(len(frames) for _, frames in share) for share in shares] == [9, 41]
