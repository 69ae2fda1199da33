"""The table of docs/evaluation.md: the benchmarks, from their adapters."""

from __future__ import annotations

from megatron_longrl.config.benchmarks import BENCHMARKS
from megatron_longrl.evaluation.benchmark import find_benchmark


def tables() -> str:
    """A line for each of the package's benchmarks."""
    lines = ["| `--benchmark` | what it is | files in `--data` | its rule |", "|---|---|---|---|"]
    for name in BENCHMARKS.built_in:
        found = find_benchmark(name)
        lines.append(f"| `{name}` | {found.title} | {found.files} | {found.rule} |")
    return "\n".join(lines)
