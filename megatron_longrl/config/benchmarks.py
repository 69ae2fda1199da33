"""The benchmarks by name.

Only declarations are here; the adapters are in :mod:`megatron_longrl.evaluation.benchmarks`, and
imported when they are used.
"""

from __future__ import annotations

from typing import Annotated, Any

from megatron_longrl.config.section import Names, is_name_in
from megatron_longrl.registry import Registry

_MODULES = {
    "longvideo_reason": "longvideo_reason",
    "video_mme": "video_mme",
    "video_mme_subtitles": "video_mme",
    "longvideobench": "longvideobench",
    "mlvu": "mlvu",
    "lvbench": "lvbench",
    "nextqa": "nextqa",
    "perception_test": "perception_test",
    "activitynet_qa": "activitynet_qa",
    "vnbench": "vnbench",
    "video_mmmu": "video_mmmu",
    "daily_omni": "daily_omni",
    "mmau": "mmau",
}

BENCHMARKS: Registry[Any] = Registry(
    "benchmark",
    "megatron_longrl.benchmarks",
    {
        name: f"megatron_longrl.evaluation.benchmarks.{module}:{name.upper()}"
        for name, module in _MODULES.items()
    },
    problem="megatron_longrl.evaluation.benchmark:problem_of_benchmark",
)
"""The :class:`~megatron_longrl.evaluation.benchmark.Benchmark` objects by ``--benchmark``."""

BenchmarkName = Annotated[str, Names(BENCHMARKS.names), is_name_in(BENCHMARKS)]
"""Fields that name one."""
