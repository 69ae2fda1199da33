"""Seconds per phase of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megatron_longrl.observability.log_line import TIME_PREFIX
from megatron_longrl.processes.rank_watch import rank_watch


class PhaseTimer:
    """Adds up the seconds spent in named phases of a step.

    ```
    with timer("encode"):
        ...
    metrics |= timer.pop()  # {"time/encode": 0.42}
    ```

    A phase inside another one counts for itself only, so that all phases add up to the step.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        """`synchronize` waits for queued work of the device; by default the platform's."""
        if synchronize is None:
            from megatron_longrl.platforms import platform

            synchronize = platform.synchronize
        self._synchronize = synchronize
        self._seconds: dict[str, float] = {}
        self._nested = [0.0]
        """Seconds of the phases inside every open phase."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block towards `phase`, also when it raises."""
        # Work queued before the block must not be counted in it, and its own must be done.
        self._synchronize()
        start = time.perf_counter()
        self._nested.append(0.0)
        try:
            with rank_watch.during(phase):
                yield
                self._synchronize()
        finally:
            spent = time.perf_counter() - start
            own = spent - self._nested.pop()
            self._nested[-1] += spent
            self._seconds[phase] = self._seconds.get(phase, 0.0) + own

    def so_far(self) -> dict[str, float]:
        """Seconds by phase since the last :meth:`pop`."""
        return dict(self._seconds)

    def pop(self) -> dict[str, float]:
        """`{"time/<phase>": seconds}` since the last call, in order of first use."""
        seconds, self._seconds = self._seconds, {}
        return {TIME_PREFIX + phase: value for phase, value in seconds.items()}
