"""Saving while training goes on, on one rank."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint.loading import load_checkpoint
from megatron_longrl.checkpoint.retention import Retention
from megatron_longrl.checkpoint.saver import CheckpointSaver
from megatron_longrl.errors import UserError
from tests.unit.checkpoint.test_distributed import assert_equal, snapshot, train


class Disk:
    """Lets no file reach the disk before it is told to."""

    def __init__(self) -> None:
        self.lets_through = threading.Event()
        self.is_full = False
        self.reached = threading.Event()

    def fsync(self, descriptor: int) -> None:
        self.reached.set()
        assert self.lets_through.wait(60)
        if self.is_full:
            raise OSError(28, "No space left on device")


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr("os.fsync", disk.fsync)
    yield disk
    disk.lets_through.set()


@pytest.fixture
def saver(tiny, groups):
    """Makes savers."""

    def make(config, retention=None):
        return CheckpointSaver(retention or Retention(None, None), groups, config)

    return make


def save(saver, model, directory, iteration):
    return saver.save(
        directory,
        iteration,
        modules=model.modules,
        optimizers=model.optimizers,
        scheduler=model.scheduler,
        state={"consumed_samples": iteration},
    )


def load(model, groups, config, directory):
    return load_checkpoint(
        directory,
        modules=model.modules,
        optimizers=model.optimizers,
        scheduler=model.scheduler,
        groups=groups,
        config=config,
        checkpoint=config.checkpoint,
    )


def newest(directory: Path) -> str:
    return layout.newest_complete(directory)[0].name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bf16": True},
        {"use_distributed_optimizer": False},
        {"bf16": True, "use_distributed_optimizer": False},
        {"freeze_vision_tower": True, "untie_embeddings_and_output_weights": True},
    ],
)
def test_it_holds_the_state_of_its_step(changes, tiny, groups, build, saver, disk, tmp_path):
    config = tiny(async_save=True, **changes)
    model, writer = build(config), saver(config)
    train(model, 2, seed=1)
    expected = snapshot(model)
    folder = save(writer, model, tmp_path, 2)
    train(model, 2, seed=2)
    assert disk.reached.wait(60)
    assert not folder.exists()
    disk.lets_through.set()
    writer.wait()
    resumed = build(config.replace(seed=99))
    assert load(resumed, groups, config, tmp_path).iteration == 2
    assert_equal(expected, snapshot(resumed))
    assert not all((expected[name] == tensor).all() for name, tensor in snapshot(model).items())


def test_nobody_sees_it_before_it_is_complete(tiny, build, saver, disk, tmp_path):
    config = tiny(async_save=True)
    model, retention = build(config), Retention(1, None)
    writer = saver(config, retention)
    disk.lets_through.set()
    save(writer, model, tmp_path, 1)
    writer.wait()
    disk.lets_through.clear()
    disk.reached.clear()
    second = save(writer, model, tmp_path, 2)
    assert disk.reached.wait(60)
    writer.poll()
    assert layout.partial_folder(second).exists()
    assert newest(tmp_path) == "iter_0000001"
    assert retention.prune(tmp_path, 2) == []
    disk.lets_through.set()
    while not second.exists():
        writer.poll()
    writer.wait()
    assert newest(tmp_path) == "iter_0000002"
    assert [p.name for p in tmp_path.glob("iter_*")] == ["iter_0000002"]
    assert not layout.partial_folder(second).exists()


def test_a_save_waits_for_the_one_before(tiny, build, saver, disk, tmp_path):
    config = tiny(async_save=True)
    model, writer = build(config), saver(config)
    save(writer, model, tmp_path, 1)
    threading.Timer(0.5, disk.lets_through.set).start()
    save(writer, model, tmp_path, 2)
    assert (tmp_path / "iter_0000001").exists()
    writer.wait()
    assert newest(tmp_path) == "iter_0000002"


def test_a_failed_write_is_told(tiny, build, saver, disk, tmp_path):
    config = tiny(async_save=True)
    model, writer = build(config), saver(config)
    disk.lets_through.set()
    save(writer, model, tmp_path, 1)
    writer.wait()
    disk.is_full = True
    save(writer, model, tmp_path, 2)
    with pytest.raises(UserError, match="No space left on device"):
        writer.wait()
    assert newest(tmp_path) == "iter_0000001"
    disk.is_full = False
    save(writer, model, tmp_path, 2)
    writer.wait()
    assert newest(tmp_path) == "iter_0000002"


@pytest.mark.parametrize("is_full", [False, True], ids=["written", "not written"])
def test_an_error_of_the_run_waits(is_full, tiny, build, saver, disk, tmp_path, caplog):
    config = tiny(async_save=True)
    disk.is_full = is_full
    with pytest.raises(KeyError, match="of the run"), saver(config) as writer:
        save(writer, build(config), tmp_path, 1)
        threading.Timer(0.5, disk.lets_through.set).start()
        raise KeyError("of the run")
    assert (tmp_path / "iter_0000001").exists() is not is_full
    assert ("No space left on device" in caplog.text) is is_full
