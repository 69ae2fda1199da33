"""The media of the next step are loaded while the present one trains, which changes no figure."""

from __future__ import annotations

import threading

import pytest

from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.data.rows import load_rows
from megatron_longrl.media import loader
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.runtime import build_runtime
from megatron_longrl.training.sft import SFTTrainer
from tests.distributed.cases import CP2
from tests.distributed.layouts import tiny_config

STEPS = 3
AHEAD = "load media ahead"


def run(folder, gib, options):
    """Metrics of every step, weights, and the threads that were there behind each step."""
    config = tiny_config(folder, lr=1e-2, train_iters=STEPS, media_prefetch_gib=gib, **options)
    runtime = build_runtime(config, "sft")
    trainer = SFTTrainer(runtime)
    source = DataIterator(
        RowSampler(load_rows(config.data.train_data_path), 0),
        0,
        2,
        runtime.groups,
        goes_on=lambda step: step < STEPS - 1,
    )
    steps = [trainer.step(step, source) for step in range(STEPS)]
    runtime.close()
    weights = [p.detach().clone() for p in runtime.model.policy.module.parameters()]
    return steps, weights


def media_threads():
    """Threads that read media; other tests of this process may have left some of their own."""
    return {t for t in threading.enumerate() if t.name in (AHEAD, "load media", "look into media")}


@pytest.mark.parametrize("layout", [{}, CP2], ids=["DP2", "MR-SP2"])
def test_losses_are_the_same_and_nothing_is_left(tiny_data, layout, monkeypatch):
    loads: list[str] = []
    load = loader.load_units

    def note(requests):
        loads.append(threading.current_thread().name)
        return load(requests)

    monkeypatch.setattr(loader, "load_units", note)
    before = media_threads()
    ahead, weights = run(tiny_data, 1.0, layout)
    assert AHEAD in loads and media_threads() <= before
    for gib in (0.0, 1e-9):
        loads.clear()
        alone, others = run(tiny_data, gib, layout)
        assert AHEAD not in loads and loads
        assert alone == ahead
        assert all(a.equal(b) for a, b in zip(weights, others, strict=True))
