"""The layouts and options whose losses and gradients must all be those of one rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

TP2 = {"tensor_model_parallel_size": 2}
SP = {"sequence_parallel": True}
CP2 = {"context_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
EXCHANGES = ("all_gather", "a2a", "p2p")

TWO_RANKS: dict[str, dict[str, Any]] = {
    "TP2": TP2,
    "TP2 with sequence parallelism": TP2 | SP,
    "MR-SP2": CP2,
    "PP2": PP2,
    "DP2": {},
}
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "TP2 x MR-SP2": TP2 | CP2,
    "TP2 with sequence parallelism x MR-SP2": TP2 | SP | CP2,
    "PP2 x MR-SP2": PP2 | CP2,
    "DP2 x MR-SP2": CP2,
    "MR-SP4": {"context_parallel_size": 4},
    "TP2 x PP2": TP2 | PP2,
    "TP2 with sequence parallelism x DP2": TP2 | SP,
    "PP2 x DP2": PP2,
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "packed": ({}, {"use_sequence_packing": True}),
    "shared prompts": ({"shared_prompt": False}, {"shared_prompt": True}),
    "frozen encoder": ({}, {"freeze_vision_tower": True, "freeze_projector": True}),
}

ALL_CHOICES: list[tuple[int, ...]] = list(itertools.product((0, 1), repeat=len(OPTIONS)))
PAIRWISE: list[tuple[int, ...]] = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
"""Every pair of two options' values, in half of the runs."""


def is_in_cover(place: int, choice: tuple[int, ...]) -> bool:
    """Whether a cover of all pairs has this choice of options for the layout at this place.

    It has two choices for each layout, every option on in one of them and off in the other; four
    layouts in a row have every pair of two options' values.
    """
    chosen = PAIRWISE[place % len(PAIRWISE)]
    return choice in (chosen, tuple(1 - value for value in chosen))


def exchanged(layouts: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every layout that shares sequences, with every exchange."""
    result = {}
    for name, fields in layouts.items():
        if "context_parallel_size" not in fields:
            result[name] = fields
            continue
        for exchange in EXCHANGES:
            result[f"{name} {exchange}"] = fields | {"cp_comm_type": exchange}
    return result


def cases(
    layouts: Mapping[str, dict[str, Any]], choices: list[tuple[int, ...]], guard: str
) -> Iterator[Any]:
    """A pytest parameter for every layout, exchange and choice of options.

    Args:
        guard: the test that runs the cover in the first tier; the rest is for ``--full``.
    """
    for place, (name, fields) in enumerate(exchanged(layouts).items()):
        for choice in choices:
            chosen = dict(fields)
            labels = [name]
            for value, (option, values) in zip(choice, OPTIONS.items(), strict=True):
                chosen |= values[value]
                labels += [option] if value else []
            marks = () if is_in_cover(place, choice) else (pytest.mark.full(guard),)
            yield pytest.param(chosen, id=", ".join(labels), marks=marks)
