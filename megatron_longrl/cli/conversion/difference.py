"""The difference between what two models compute."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The difference between two sets of numbers."""

    largest: float
    mean: float
    same_choice: float | None = None
    """Share of positions where both have the same token first; None where there are no tokens."""

    def __str__(self) -> str:
        line = f"largest difference {self.largest:.2e}, mean {self.mean:.2e}"
        if self.same_choice is None:
            return line
        return f"{line}, same first choice at {100 * self.same_choice:.1f} % of the positions"
