"""metrics.jsonl: one JSON object per step, readable while a run writes it.

Floats are written with all their digits. JSON has no numbers for NaN and infinities; they are
written as the strings "NaN", "Infinity" and "-Infinity", which `read_metrics` turns back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_longrl.atomic_file import atomic_write_text, writable
from megatron_longrl.config.renamed import NEW_METRICS
from megatron_longrl.errors import UserError
from megatron_longrl.regular_file import open_regular

Metrics = dict[str, float]
"""Values of one step by key; `iteration` and counts are ints."""

METRICS_FILE = "metrics.jsonl"
"""Name of the file in the ``--save`` folder of a run."""

_NOT_NUMBERS = {"NaN", "Infinity", "-Infinity"}


class MetricsFile:
    """Appends steps to a file and forgets those that a resumed run does again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, metrics: Mapping[str, float]) -> None:
        """Write one step; it has left this process when the call returns.

        Raises UserError when it cannot be written.
        """
        values = {key: _to_json(value) for key, value in metrics.items()}
        with writable(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values, allow_nan=False) + "\n")

    def truncate_after(self, iteration: int) -> None:
        """Drop the steps after `iteration` and a last line that was cut off; 0 drops everything.

        The lines that stay are copied byte by byte into a file that then takes the old one's place.
        Raises UserError when a line is not a step.
        """
        if not self.path.exists():
            return
        kept = [line for step, line in _steps(self.path) if 0 <= step["iteration"] <= iteration]
        with writable(self.path):
            atomic_write_text(self.path, "".join(kept) if iteration > 0 else "")


def read_metrics(path: Path) -> list[Metrics]:
    """Read all steps of a metrics.jsonl, in its order; old keys are read as the present ones.

    A last line that was cut off is left out. Raises UserError when the file cannot be read or
    another line is malformed.
    """
    try:
        steps = [step for step, _ in _steps(path)]
    except OSError as error:
        raise UserError(f"{path}: cannot read the metrics: {error.strerror}") from None
    return [{NEW_METRICS.get(key, key): value for key, value in step.items()} for step in steps]


def _steps(path: Path) -> Iterator[tuple[Metrics, str]]:
    """The steps of a file with their lines."""
    with open_regular(path) as file:
        lines = file.read().splitlines(keepends=True)
    for number, written in enumerate(lines, start=1):
        if not written.endswith(b"\n"):
            return  # The writer was killed, or is at work, in the middle of this line.
        try:
            line = written.decode("utf-8")
            values = json.loads(line)
            step = {k: float(v) if v in _NOT_NUMBERS else v for k, v in values.items()}
            step["iteration"] = int(step["iteration"])
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise UserError(
                f"{path}:{number}: not a step of a training run: remove the line or the file"
            ) from None
        yield step, line


def _to_json(value: float) -> float | str:
    if isinstance(value, int):
        return int(value)
    number = float(value)  # Also takes a tensor or an array of one element.
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")
