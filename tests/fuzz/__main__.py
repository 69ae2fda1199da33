"""Odd inputs of every kind, by a seed: ``python -m tests.fuzz [--seed 1]``.

5,000 rows, 3,500 images, 1,000 videos, 500 files of sound or films with it, and 500 damaged files
of checkpoints go the way that training takes: rows are loaded and expanded into prompts, media
decoded, checkpoints read as ``longrl convert`` reads them. Each is read, or refused in one line
that names it. The exit status is 1 where one hangs, ends its process, raises what is no error of a
user, has a traceback printed, or is refused without its name; such inputs are kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.isolated import FAULTS, READ, REFUSED, Isolated, Outcome

COUNTS = {"rows": 5000, "images": 3500, "videos": 1000, "sounds": 500, "checkpoints": 500}


@dataclass
class Tally:
    """Of the inputs of a kind."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    noisy: int = 0
    seconds: float = 0.0
    gib: float = 0.0

    def line(self) -> str:
        """As it is printed."""
        names = (READ, REFUSED, *FAULTS)
        counts = ", ".join(f"{self.outcomes[name]} {name}" for name in names)
        return (
            f"{self.kind:12} {self.outcomes.total():5}: {counts}; "
            f"{self.noisy} on which a library wrote to stderr; {self.seconds:.0f} s, "
            f"at most {self.gib:.2f} GiB"
        )


def run(kind: str, count: int, seed: int, folder: Path, keep: Path) -> Tally:
    """Make inputs of a kind, and tell what came of them; faults are printed."""
    tally, began = Tally(kind), time.monotonic()
    work, seconds, start, inputs = _prepare(kind, count, seed, folder)
    isolated = Isolated(work, seconds, start)
    for number, (name, given) in enumerate(inputs):
        outcome: Outcome = isolated(given)
        tally.outcomes[outcome.kind] += 1
        tally.noisy += outcome.is_noisy
        if outcome.kind in FAULTS:
            told = f"{kind} {number} of seed {seed} ({name})"
            if isinstance(given, tuple) and isinstance(given[1], bytes):
                keep.mkdir(exist_ok=True)
                kept = keep / f"{kind}_{seed}_{number}_{name}"
                kept.write_bytes(given[1])
                told += f", kept as {kept}"
            sys.stdout.write(f"{told}: {outcome.kind}: {outcome.told[-1500:]}\n")
    isolated.close()
    tally.seconds, tally.gib = time.monotonic() - began, isolated.most_memory / 2**20
    return tally


def _prepare(
    kind: str, count: int, seed: int, folder: Path
) -> tuple[Callable[[Any], Outcome], float, Callable[[], None], Iterable[tuple[str, Any]]]:
    """What is called, its limits, and names and values of inputs."""
    if kind == "rows":
        from tests.fuzz import rows

        named = ((repr(line[:200]), line) for line in rows.make(seed, count))
        return rows.Rows(folder), rows.SECONDS, lambda: None, named
    if kind == "checkpoints":
        from tests.fuzz import checkpoints

        numbers = (("damaged", (seed, number)) for number in range(count))
        converted = checkpoints.Checkpoints(folder)
        return converted, checkpoints.SECONDS, checkpoints.limit_memory, numbers
    from tests.fuzz import media

    inputs = media.make(kind, seed, count, folder)
    read = media.Sounds(folder) if kind == "sounds" else media.Media(folder)
    return read, media.SECONDS, lambda: None, inputs


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where an input was neither read nor refused as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_found"))
    given = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)  # processes are forked
    tallies = []
    for kind in COUNTS:
        count = getattr(given, kind)
        if count:
            with tempfile.TemporaryDirectory() as folder:
                tallies.append(run(kind, count, given.seed, Path(folder), given.keep))
            sys.stdout.write(tallies[-1].line() + "\n")
            sys.stdout.flush()
    together = sum((tally.outcomes for tally in tallies), Counter[str]())
    seconds = sum(tally.seconds for tally in tallies)
    faults = ", ".join(f"{together[name]} {name}" for name in FAULTS)
    sys.stdout.write(f"{together.total()} inputs, seed {given.seed}: {faults}; {seconds:.0f} s\n")
    return int(any(together[name] for name in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
