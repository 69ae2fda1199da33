"""Two ranks save while training goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_longrl.checkpoint.folder import newest_complete
from megatron_longrl.checkpoint.retention import Retention
from megatron_longrl.checkpoint.saver import CheckpointSaver
from megatron_longrl.errors import UserError
from tests.distributed.test_checkpoint import Run, assert_equal
from tests.runner.tiers import full_only


def begin(run: Run, saver: CheckpointSaver, folder: Path, iteration: int) -> Path:
    return saver.save(
        folder,
        iteration,
        modules=run.model.modules,
        optimizers=run.model.optimizers,
        scheduler=run.model.scheduler,
        state={"consumed_samples": iteration},
    )


def saver_of(run: Run) -> CheckpointSaver:
    return CheckpointSaver(Retention(None, None), run.groups, run.config)


@pytest.fixture
def held(monkeypatch):
    """Holds this rank's files back until it is set."""
    event = threading.Event()
    monkeypatch.setattr("os.fsync", lambda descriptor: event.wait(60))
    yield event
    event.set()


KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": True},
    "whole optimizer": {"use_distributed_optimizer": False},
}


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    full_only(
        "tests/distributed/test_async_save.py::"
        "test_a_run_goes_on_as_from_a_save_that_it_waited_for",
        [
            pytest.param(before, after, changes, id=f"{before} to {after}, {kind}")
            for before, after in (("tp2", "tp2"), ("dp2", "pp2"), ("cp2", "dp2"))
            for kind, changes in KINDS.items()
        ],
        ["tp2 to tp2, whole optimizer", "dp2 to pp2, bf16", "cp2 to dp2, fp32"],
    ),
)
def test_a_run_goes_on_as_from_a_save_that_it_waited_for(before, after, changes, shared_path, held):
    run = Run(before, async_save=True, **changes)
    run.train(2, seed=1)
    saver = saver_of(run)
    folder = begin(run, saver, shared_path / "async", 2)
    run.train(1, seed=2)  # with collectives of its own, while the other thread waits
    expected = run.tensors()
    saver.poll()
    assert not folder.exists()
    if dist.get_rank() == 1:
        held.set()
    saver.poll()
    assert not folder.exists(), "it needs both ranks"
    dist.barrier()
    held.set()
    saver.wait()

    resumed = Run(after, seed=99, **changes)
    loaded = resumed.load(shared_path / "async")
    assert loaded is not None and loaded.iteration == 2
    # The very state that a save which training waits for holds.
    waiting = Run(before, **changes)
    waiting.train(2, seed=1)
    assert_equal(waiting.tensors(), resumed.tensors())
    resumed.train(1, seed=2)
    assert_equal(expected, resumed.tensors())


def test_a_write_that_fails_on_one_rank_is_an_error_on_both(shared_path, monkeypatch):
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    run = Run("tp2", async_save=True)
    saver = saver_of(run)
    begin(run, saver, shared_path, 1)
    saver.wait()
    if dist.get_rank() == 1:
        monkeypatch.setattr("os.fsync", full)
    begin(run, saver, shared_path, 2)
    run.train(1, seed=1)
    with pytest.raises(UserError, match="No space left on device"):
        while True:
            saver.poll()
    assert newest_complete(shared_path)[0].name == "iter_0000001"
    monkeypatch.undo()
    begin(run, saver, shared_path, 2)
    saver.wait()
    assert newest_complete(shared_path)[0].name == "iter_0000002"


def test_one_rank_ends_with_an_error_of_its_own(shared_path, held):
    """Its thread goes on until the checkpoint is complete, while the other rank trains."""
    run = Run("dp2", async_save=True)
    saver = saver_of(run)
    threading.Timer(0.5, held.set).start()
    with pytest.raises(KeyError), saver:
        folder = begin(run, saver, shared_path, 1)
        while dist.get_rank() == 0 and not folder.exists():
            time.sleep(0.05)
        raise KeyError("alone")
    assert newest_complete(shared_path)[0].name == "iter_0000001"
