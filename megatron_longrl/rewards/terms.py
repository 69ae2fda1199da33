"""The rewards of a run and their weights, from --rewards and --reward-function."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_longrl.errors import UserError
from megatron_longrl.rewards.registry import TAKEN, names
from megatron_longrl.spelling import nearest

if TYPE_CHECKING:
    from megatron_longrl.config.rewards import RewardSection

_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>[^\W\d]\w*)(?:=(?P<weight>.*))?")


@dataclass(frozen=True)
class RewardTerm:
    """A term of the reward's sum."""

    name: str
    weight: float
    """0: computed and reported, but no part of the sum."""
    file: str | None = None
    """File of the user's function."""


def reward_terms(config: RewardSection) -> list[RewardTerm]:
    """All terms, built-in ones first.

    Raises:
        UserError: a name that is unknown or not unique, or a weight that is no number.
    """
    terms = [_built_in(text) for text in config.rewards]
    terms += [_function(text) for text in config.reward_function]
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two rewards are called '{name}': keep one of them, or rename the function"
            )
    return terms


def _built_in(text: str) -> RewardTerm:
    name, equals, weight = text.partition("=")
    known = names()
    if name not in known:
        raise UserError(
            f"rewards: '{name}' is not known{nearest(name, known)}; there are {', '.join(known)}, "
            "and your own by --reward-function FILE.py:NAME"
        )
    return RewardTerm(name, _weight(text, weight if equals else None))


def _function(text: str) -> RewardTerm:
    match = _FUNCTION.fullmatch(text)
    if match is None:
        raise UserError(
            f"reward_function: '{text}' is not of the form FILE.py:NAME or FILE.py:NAME=WEIGHT"
        )
    if match["name"] in (*names(), *TAKEN):
        raise UserError(f"reward_function: give {text} another name, '{match['name']}' is taken")
    return RewardTerm(match["name"], _weight(text, match["weight"]), match["file"])


def _weight(text: str, weight: str | None) -> float:
    if weight is None:
        return 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"'{text}': the weight '{weight}' is not a number")
    return value
