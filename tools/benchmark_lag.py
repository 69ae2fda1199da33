"""Measure RL steps with ``--rollout-lag 0`` and ``1``, a server, and a slow reward function.

::

    python tools/benchmark_lag.py --output DIR

Each timing is a torchrun launch of its own on two ranks, with the quickstart's model and random
weights; the two lags take turns. At lag 1 the responses of the next step are generated and scored
while this step's passes and update run. What a step saves is printed beside the part of the waiting
for rewards that is gone, and the bound: the shorter of that waiting and of the passes. Generation
needs the processors that the passes have, and so ends later than at lag 0, where they are idle.
Writes ``benchmark_lag.json`` into DIR, which must be empty or new.
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
from megatron_longrl.observability.log_line import TIME_PREFIX
from megatron_longrl.observability.metrics_file import read_metrics

MODEL = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "model.yaml"
PROMPTS, GROUP = 16, 8
WARM_UP = 3
"""Steps that are not counted: first uses of everything, and the one that nothing is ahead of."""

REWARD = """\
import time


def slow(response, seconds):
    time.sleep(seconds)
    return len(response) % 2
"""
PASSES = ("pack", "input_parity", "old", "advantages", "record", "update")
"""The phases of a step beside which lag 1 generates and scores."""


def run(lag: int, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """One launch: medians over its steps, in seconds, of a step and of its phases."""
    folder = options.output / f"lag{lag}-{number}"
    folder.mkdir()
    data = options.output / "data"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "megatron_longrl.train_rl", "--config", str(MODEL), "--save", str(folder)),
        *("--tokenizer-model", str(data / "tok.model"), "--seq-length", "256"),
        *("--train-data-path", str(data / str(options.frames)), "--micro-batch-size", "16"),
        *("--grpo-prompts-per-step", str(PROMPTS), "--grpo-group-size", str(GROUP)),
        *("--video-frames", str(options.frames), "--lr", "1e-5"),
        *("--freeze-vision-tower", "--freeze-projector"),
        *("--reward-function", f"{options.output / 'slow.py'}:slow"),
        *("--reward-kwargs", json.dumps({"seconds": options.reward_seconds})),
        *("--train-iters", str(WARM_UP + options.steps), "--rollout-engine", "server"),
        *("--rollout-lag", str(lag), "--rollout-correction", "ratio"),
    ]
    with open(folder / "log", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=log, stderr=log, check=True, env=environment)
    steps = read_metrics(folder / "metrics.jsonl")[WARM_UP:]
    names = {key for step in steps for key in step if key.startswith(TIME_PREFIX)}
    phases = {
        name.removeprefix(TIME_PREFIX): median(step.get(name, 0.0) for step in steps)
        for name in sorted(names)
    }
    return {"lag": lag, "seconds": median(s["iteration-time"] for s in steps), "phases": phases}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--frames", type=int, default=16, help="of each video")
    parser.add_argument("--reward-seconds", type=float, default=0.01, help="for each response")
    parser.add_argument("--steps", type=int, default=15, help="timed steps; their medians count")
    parser.add_argument("--pairs", type=int, default=2, help="timings of each lag")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if any(options.output.iterdir()):
        parser.error(f"--output {options.output} is not empty")
    write_data(options.output / "data", [options.frames], 2 * PROMPTS)
    (options.output / "slow.py").write_text(REWARD)
    pairs: list[dict[str, float]] = []
    timings: list[dict[str, Any]] = []
    for number in range(options.pairs):
        zero, one = (run(lag, number, options) for lag in (0, 1))
        timings += [zero, one]
        before, after = zero["phases"], one["phases"]
        pair = {
            "saved": zero["seconds"] - one["seconds"],
            "overlapped": before["reward"] - after["reward"],
            "bound": min(before["reward"], sum(before[name] for name in PASSES)),
        }
        pairs.append(pair)
        print(
            f"lag 0 {zero['seconds']:.2f} s a step, lag 1 {one['seconds']:.2f}: "
            f"{pair['saved']:.2f} saved, {pair['overlapped']:.2f} of it waiting for rewards, "
            f"bound {pair['bound']:.2f}",
            flush=True,
        )
    report = {"pairs": pairs, "timings": timings}
    (options.output / "benchmark_lag.json").write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
