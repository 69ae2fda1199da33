"""Measure rollouts beside plain vLLM (the same prompts, weights and seeds), and the way of the
weights to the engine beside a copy of them in memory.

::

    python tools/benchmark_rollouts.py --output DIR

Each timing is a process of its own, one rank and one thread; the engines take turns, so that a
machine that slows down slows all. Writes ``benchmark_rollouts.json`` into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from megatron_longrl.benchmark.data import write_data

ENGINES = ("colocated", "server", "plain")


def run(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """One timing."""
    result = options.output / f".{engine}.json"
    command = [
        *(sys.executable, "-m", "megatron_longrl.benchmark.rollout_worker", "--engine", engine),
        *("--frames", str(options.frames), "--group-size", str(options.group_size)),
        *("--tokens", str(options.tokens), "--steps", str(options.steps)),
        *("--data", str(options.output / "data"), "--folder", str(options.output)),
        *("--result", str(result), *(["--eager"] if options.eager else [])),
    ]
    with open(options.output / f"{engine}.log", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=log, stderr=log, check=True, env=environment)
    timing: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return {"engine": engine, **timing, "tokens_per_second": timing["tokens"] / timing["seconds"]}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--frames", type=int, default=64, help="of each video")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8, help="responses per prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of each response")
    parser.add_argument("--steps", type=int, default=3, help="generations per timing")
    parser.add_argument("--pairs", type=int, default=3, help="timings of each engine")
    parser.add_argument(
        "--eager", action="store_true", help="plain vLLM without compilation, as the engine on CPUs"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    write_data(options.output / "data", [options.frames], options.prompts)
    timings: list[dict[str, Any]] = []
    for _ in range(options.pairs):
        for engine in ENGINES:
            timings.append(run(engine, options))
            print(f"{engine:10s} {timings[-1]['tokens_per_second']:8.1f} tokens/s", flush=True)
    rates = {
        engine: [t["tokens_per_second"] for t in timings if t["engine"] == engine]
        for engine in ENGINES
    }
    report: dict[str, Any] = {"timings": timings}
    for engine in ENGINES[:-1]:
        ratios = [a / b for a, b in zip(rates[engine], rates["plain"], strict=True)]
        copies = [t["sync_seconds"] / t["copy_seconds"] for t in timings if t["engine"] == engine]
        report[engine] = {"ratio": median(ratios), "sync_over_copy": median(copies)}
        print(
            f"{engine:10s} {median(ratios):8.2f} of plain vLLM's tokens/s (median of {len(ratios)} "
            f"pairs), weights in {median(copies):.1f} times a copy's time"
        )
    (options.output / "benchmark_rollouts.json").write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
