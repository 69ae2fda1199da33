"""Several values of evaluate's ``--video-frames``."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

FRAMES, SWEEP = "video_frames", "eval_video_frames"


def take_several_frames(parser: ArgumentParser) -> None:
    """Let ``--video-frames`` take several values, of which :func:`spread_frames` makes a sweep."""
    for action in parser._actions:
        if action.dest == FRAMES:
            action.nargs = "+"


def spread_frames(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep that several values make, and the largest of it, for which the run is laid out.

    Args:
        values: the values of flags and recipes, by field.

    Returns:
        The fields that change.
    """
    changes: dict[str, Any] = {}
    given = values.get(FRAMES)
    sweep = values.get(SWEEP)
    if isinstance(given, list):  # of the flag, which wins over a recipe's sweep
        changes[FRAMES] = given[0]
        sweep = given if len(given) > 1 else []
        changes[SWEEP] = sweep
    if isinstance(sweep, list) and sweep and all(str(value).isdecimal() for value in sweep):
        changes[FRAMES] = max(int(value) for value in sweep)
    return changes
