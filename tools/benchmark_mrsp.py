"""Measure RL steps with and without MR-SP over numbers of frames.

::

    python tools/benchmark_mrsp.py --frames 8 16 32 64 128 256 512 1024 --nproc 2 --group-size 8 \
        --output DIR

Writes ``benchmark_mrsp.json`` and ``benchmark_mrsp.png`` into DIR after every point. Every point is
a torchrun launch of its own, so that peaks of memory are its own and one that fails does not end
the others.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from megatron_longrl.benchmark.data import write_data
from megatron_longrl.benchmark.report import line_of, write_report
from megatron_longrl.benchmark.variants import PROMPTS_PER_STEP, VARIANTS


def run_point(variant: str, frames: int, options: argparse.Namespace) -> dict[str, Any]:
    """Launch one point; a failure is a result, too."""
    result = options.output / f".{variant}-{frames}.json"
    result.unlink(missing_ok=True)
    ranks = 1 if VARIANTS[variant].one_rank else options.nproc
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(ranks), "-m", "megatron_longrl.benchmark.worker"),
        *("--variant", variant, "--frames", str(frames)),
        *("--group-size", str(options.group_size), "--steps", str(options.steps)),
        *("--point-seconds", str(options.point_seconds)),
        *("--warm-up-frames", str(min(options.frames)), "--data", str(options.output / "data")),
        *("--result", str(result)),
    ]
    log = options.output / f"{variant}-{frames}.log"
    failed = {"variant": variant, "frames": frames}
    limit = None
    if options.memory_limit_mb is not None:
        most = options.memory_limit_mb * 2**20
        limit = partial(resource.setrlimit, resource.RLIMIT_DATA, (most, most))
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=limit
        )
        try:
            status = process.wait(timeout=options.timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its ranks
            process.wait()
            return {**failed, "error": f"not done after {options.timeout:g} s"}
    if status or not result.exists():
        return {**failed, "error": f"exit status {status}, see {log}"}
    point: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return point


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", required=True)
    parser.add_argument("--nproc", type=int, default=2, help="ranks")
    parser.add_argument("--group-size", type=int, default=8, help="responses per prompt")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    usual = [variant.name for variant in VARIANTS.values() if variant.is_default]
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=usual)
    parser.add_argument("--steps", type=int, default=3, help="timed steps; their median counts")
    parser.add_argument(
        "--point-seconds",
        type=float,
        default=60,
        help="a point begins no further step when its timed ones have taken longer",
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one point")
    parser.add_argument(
        "--memory-limit-mb",
        type=int,
        help="of every process (RLIMIT_DATA, as by ulimit -d); a variant that has failed is not "
        "tried with more frames",
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    write_data(options.output / "data", options.frames, PROMPTS_PER_STEP * (options.steps + 1))
    results: list[dict[str, Any]] = []
    for frames in options.frames:
        for variant in options.variants:
            failed = any(r["variant"] == variant and "error" in r for r in results)
            if failed and options.memory_limit_mb is not None:
                continue
            results.append(run_point(variant, frames, options))
            print(line_of(results[-1]), flush=True)
            write_report(options.output, results, options.group_size, options.nproc)
    return 1 if any("error" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
