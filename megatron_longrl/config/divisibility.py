"""The rule that one field divides another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from megatron_longrl.config.names import flag


def indivisible(value_of: Callable[[str], Any], field: str, by: str) -> Iterator[str]:
    """A line when the field ``by`` does not divide ``field``; the remedy lists the divisors.

    Args:
        value_of: the value of a field by its flat name.
        field, by: flat names.
    """
    value, divisor = value_of(field), value_of(by)
    if value % divisor:
        choices = [str(d) for d in range(1, min(value, 64) + 1) if value % d == 0]
        yield (
            f"{field} ({value}) is not divisible by {by} ({divisor}): "
            f"choose {flag(by)} from {', '.join(choices)}"
        )
