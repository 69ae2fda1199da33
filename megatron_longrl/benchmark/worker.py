"""One point of the benchmark: a variant at a number of frames, under torchrun."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any

import torch.distributed as dist

from megatron_longrl.benchmark.bound import phase_flops
from megatron_longrl.benchmark.counters import WorkCounter
from megatron_longrl.benchmark.step import PHASES, BenchmarkStep
from megatron_longrl.benchmark.variants import PROMPTS_PER_STEP, VARIANTS, variant_config
from megatron_longrl.data.rows import load_rows
from megatron_longrl.observability.logging import configure_logging
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.planner.cost import ModelCost
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rl.trainer import build_reference
from megatron_longrl.rollout.build import build_engine
from megatron_longrl.rollout.vllm.engine import VllmEngine
from megatron_longrl.training.hardware import matrix_rate
from megatron_longrl.training.runtime import Runtime, build_runtime

_RATE_TRIES = 5
"""One alone may fall into a moment when the machine does something else."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a step to warm up and the timed ones; the same result on every rank."""
    variant = VARIANTS[arguments.variant]
    ranks = int(os.environ["WORLD_SIZE"])
    config = variant_config(variant, arguments.frames, arguments.group_size, ranks, arguments.data)
    configure_logging(config.logging.log_level, 0)
    runtime = build_runtime(config, "rl")
    reference = build_reference(runtime)
    assert reference is not None
    with (
        closing(build_rewards(runtime.config.reward, runtime.groups)) as rewards,
        closing(build_engine(runtime.config, runtime.tokenizer, runtime.groups)) as engine,
    ):
        assert isinstance(engine, VllmEngine), "hooks count its tokens"
        counter = WorkCounter(runtime, engine)
        before = _peak_mb()
        step = BenchmarkStep(variant, runtime, engine, rewards, reference, counter)
        warm_up = load_rows([arguments.data / str(arguments.warm_up_frames)])
        step.run(0, runtime.rows_of_replica(warm_up[:PROMPTS_PER_STEP]))
        rows = load_rows(runtime.config.data.train_data_path)
        steps = []
        for number in range(arguments.steps):
            # Behind those of the warm-up, whose embeddings may be kept.
            first = (number + 1) * PROMPTS_PER_STEP
            steps.append(_timed_step(step, number + 1, rows[first : first + PROMPTS_PER_STEP]))
            if sum(s["seconds"] for s in steps) > arguments.point_seconds:
                break
        return _summary(runtime, arguments, steps, before)


def _timed_step(step: BenchmarkStep, iteration: int, rows: list[Any]) -> dict[str, Any]:
    """One step, its seconds and counts over all ranks."""
    runtime = step.runtime
    gloo_group = runtime.groups.gloo_group
    runtime.timer.pop()
    step.counter.pop()
    rate = _rate_of_all(runtime)
    dist.barrier(group=gloo_group)
    began = time.perf_counter()
    groups, metrics = step.run(iteration, runtime.rows_of_replica(rows))
    seconds = max(gather_objects(gloo_group, time.perf_counter() - began))
    phases = {name.removeprefix("time/"): value for name, value in runtime.timer.pop().items()}
    everyone = gather_objects(gloo_group, phases)
    counts = Counter[str]()
    for mine in gather_objects(gloo_group, step.counter.pop()):
        counts.update(mine)
    is_source = groups if runtime.replica_rank == 0 else []
    everything = [group for part in gather_objects(gloo_group, is_source) for group in part]
    cost = ModelCost(runtime.config)
    flops = phase_flops(
        everything,
        runtime.config.rl,
        runtime.config.training,
        counts["frames_encoded"],
        cost,
        logprob_passes=1 + step.variant.old_pass,
    )
    return {
        "seconds": seconds,
        "phases": {name: mean(p.get(name, 0.0) for p in everyone) for name in PHASES},
        "counts": dict(counts),
        "flops": flops,
        "rate": max(rate, _rate_of_all(runtime)),
        "loss": metrics["lm loss"],
    }


def _rate_of_all(runtime: Runtime) -> float:
    """Matrix operations per second of all ranks at the same time; the best of some tries."""
    tries = (matrix_rate(runtime.config.training, runtime.config.model) for _ in range(_RATE_TRIES))
    return max(sum(gather_objects(runtime.groups.gloo_group, rate)) for rate in tries)


def _summary(
    runtime: Runtime, arguments: argparse.Namespace, steps: list[dict[str, Any]], before: float
) -> dict[str, Any]:
    """The point as it is written to ``benchmark_mrsp.json``; its figures are the median step's.

    Args:
        before: MB that this rank's process took before its first step.
    """
    chosen = sorted(steps, key=lambda s: s["seconds"])[(len(steps) - 1) // 2]
    rate = max(s["rate"] for s in steps)
    bound = {phase: flops / rate for phase, flops in chosen["flops"].items()}
    seconds = chosen["seconds"]
    cost = ModelCost(runtime.config)
    per_frame = cost.per_token * (runtime.config.family.tokens_per_frame + 1)
    return {
        "variant": arguments.variant,
        "frames": arguments.frames,
        "seconds_per_step": seconds,
        "seconds_of_steps": [s["seconds"] for s in steps],
        "phases": chosen["phases"],
        "phases_of_steps": [s["phases"] for s in steps],
        "counts": chosen["counts"],
        "tokens": sum(n for name, n in chosen["counts"].items() if name.endswith("_tokens")),
        "frames_encoded": chosen["counts"]["frames_encoded"],
        "peak_rss_mb": gather_objects(runtime.groups.gloo_group, _peak_mb()),
        "rss_before_mb": gather_objects(runtime.groups.gloo_group, before),
        "bound_seconds": sum(bound.values()),
        "ratio_to_bound": seconds / sum(bound.values()),
        "phase_bounds": bound,
        "phase_ratios": {p: chosen["phases"][p] / b for p, b in bound.items() if b},
        "matrix_rate": rate,
        "encoder_to_language_flops": cost.per_frame / per_frame,
        "losses": [s["loss"] for s in steps],
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Entry point under torchrun."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--warm-up-frames", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--point-seconds", type=float, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        result = measure(arguments)
        if dist.get_rank() == 0:
            arguments.result.write_text(json.dumps(result))
    finally:
        destroy_parallel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
