"""Suites: the tests of a checkout, or those of them that an expression chooses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tools.mutation.copies import make_copy
from tools.mutation.files import read_lines, write_whole
from tools.mutation.launch import launch
from tools.mutation.measure import read_about
from tools.mutation.mutants import text_hash
from tools.mutation.parts import PARTS


@dataclass(frozen=True)
class Suite:
    """Which tests are run."""

    name: str
    checkout: Path
    expression: str = ""
    """As ``pytest -m`` takes it; empty for all tests."""

    @classmethod
    def parse(cls, text: str) -> Suite:
        """``NAME=CHECKOUT`` or ``NAME=CHECKOUT:EXPRESSION``.

        Raises:
            ValueError: it is neither, or there is no such checkout.
        """
        name, _, rest = text.partition("=")
        folder, _, expression = rest.partition(":")
        if not name.isidentifier() or not (Path(folder) / "tests").is_dir():
            raise ValueError(f"{text} is no NAME=CHECKOUT:EXPRESSION with tests in CHECKOUT")
        return cls(name, Path(folder).resolve(), expression)

    def measured_as(self, work: Path) -> str:
        """The name of the measure of its checkout.

        Raises:
            FileNotFoundError: the checkout was not measured.
        """
        folders = sorted((work / "coverage").glob("*/about.json"))
        names = [path.parent.name for path in folders]
        for name in sorted(names, key=lambda name: name != self.name):
            if Path(read_about(work / "coverage" / name).checkout) == self.checkout:
                return name
        raise FileNotFoundError(
            f"nothing was measured in {self.checkout}: coverage --suite {self.name}={self.checkout}"
        )


def tests_of(work: Path, suite: Suite) -> set[str] | None:
    """Node ids that the expression chooses; None for all. Collected once for each state."""
    if not suite.expression:
        return None
    sources = sorted((suite.checkout / "tests").rglob("*.py"))
    state = text_hash(suite.expression, *(path.read_text(encoding="utf-8") for path in sources))
    known = work / "suites" / f"{suite.name}-{state[:12]}.json"
    if not known.exists():
        write_whole(known, json.dumps(_collect(work, suite, known.with_suffix(".jsonl"))))
    return set(json.loads(known.read_text(encoding="utf-8")))


def _collect(work: Path, suite: Suite, events: Path) -> list[str]:
    copy = make_copy(work / "copies" / f"collected-{suite.name}", suite.checkout)
    events.unlink(missing_ok=True)
    launched = launch(
        PARTS[0],
        copy,
        events,
        work=work,
        paths=["tests"],
        options=["--collect-only", "-m", suite.expression],
    )
    if launched.status != 0:
        raise RuntimeError(f"{suite.name} cannot be collected: {launched.log}")
    return [row["test"] for row in read_lines(events) if row["event"] == "collected"]
