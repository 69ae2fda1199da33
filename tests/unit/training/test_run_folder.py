"""Whose folder ``--save`` is, and what is refused before anything of it changes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longrl.config import Config
from megatron_longrl.errors import UserError
from megatron_longrl.processes.daemon_thread import in_daemon_thread
from megatron_longrl.training import run_folder as module
from megatron_longrl.training.run_folder import LOCK_FILE, run_folder
from tests.tiny_vila import TINY

HOLD = """
import sys, time
from megatron_longrl.config import Config
from megatron_longrl.training.run_folder import run_folder
from tests.tiny_vila import TINY
with run_folder(Config.of({**TINY, "save": sys.argv[1]}).checkpoint):
    print("held", flush=True)
    time.sleep(60)
"""


def config(save: Path, **changes: object) -> Config:
    return Config.of({**TINY, "save": str(save), **changes})


def leave_a_run(folder: Path, *names: str) -> None:
    """What a finished run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("metrics.jsonl", "log.txt"):
        (folder / name).write_text("theirs\n")
    (folder / "iter_0000006").mkdir()
    (folder / "iter_0000006" / "longrl_state.json").write_text("{}")
    (folder / "latest_checkpointed_iteration.txt").write_text("6\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK_FILE
    }


def assert_refused(refused: Config, reason: str) -> None:
    with pytest.raises(UserError, match=reason), run_folder(refused.checkpoint):
        pytest.fail("it was taken")


def test_a_new_folder_gets_an_owner(tmp_path):
    with run_folder(config(tmp_path / "a/b").checkpoint) as id_:
        owner = json.loads((tmp_path / "a/b" / LOCK_FILE).read_text())
        assert (owner["id"], owner["process"]) == (id_, os.getpid())
        assert owner["host"] == socket.gethostname() and not owner["ended"]
    assert json.loads((tmp_path / "a/b" / LOCK_FILE).read_text())["ended"]


def test_without_a_folder_there_is_nothing_to_own():
    with run_folder(Config.of(TINY).checkpoint) as id_:
        assert id_ is None


def test_a_run_that_goes_on_keeps_its_id_and_its_files(tmp_path):
    with run_folder(config(tmp_path).checkpoint) as first:
        leave_a_run(tmp_path)
    before = contents(tmp_path)
    for load in (tmp_path, tmp_path / "iter_0000006", tmp_path / ".." / tmp_path.name):
        with run_folder(config(tmp_path, load=str(load)).checkpoint) as again:
            assert again == first
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "left",
    [
        lambda folder: leave_a_run(folder),
        lambda folder: (folder / "metrics.jsonl").write_text("{}"),
        lambda folder: (folder / "iter_0000003").mkdir(),
        lambda folder: (folder / "rollouts" / "step_1").mkdir(parents=True),
        lambda folder: (folder / "release").mkdir(),
        lambda folder: (folder / "latest_checkpointed_iteration.txt").write_text("release"),
    ],
)
@pytest.mark.parametrize("load", [None, "elsewhere"])
def test_another_run_is_not_trained_over(left, load, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    left(folder)
    before = contents(folder)
    changes = {"load": str(tmp_path / load)} if load else {}
    assert_refused(config(folder, **changes), r"holds another run .*by --load .*by --overwrite")
    assert contents(folder) == before


def test_a_recipe_beside_is_no_run(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1e-5\n")
    (tmp_path / "notes.txt").write_text("mine")
    with run_folder(config(tmp_path).checkpoint):
        pass
    assert set(contents(tmp_path)) == {"mine.yaml", "notes.txt"}


def test_a_run_that_has_ended_before_its_first_step_is_none(tmp_path):
    for name in ("metrics.jsonl", "log.txt"):
        (tmp_path / name).touch()
    (tmp_path / "rollouts").mkdir()
    with run_folder(config(tmp_path).checkpoint):
        pass


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    leave_a_run(tmp_path)
    (tmp_path / "rollouts" / "step_1").mkdir(parents=True)
    (tmp_path / "quarantine" / "0.json").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    with run_folder(config(tmp_path, overwrite=True).checkpoint):
        assert set(contents(tmp_path)) == {"notes.txt"}
        for name in ("iter_0000006", "rollouts", "quarantine"):
            assert not (tmp_path / name).exists()


@pytest.mark.parametrize("load", ["run", "run/iter_0000006"])
@pytest.mark.parametrize("flag", ["load", "pretrained_checkpoint"])
def test_weights_that_the_run_starts_from_are_not_removed(flag, load, tmp_path):
    leave_a_run(tmp_path / "run")
    before = contents(tmp_path)
    changes = {flag: str(tmp_path / load), "finetune": flag == "load", "overwrite": True}
    assert_refused(config(tmp_path / "run", **changes), r"also where --.* takes the weights from")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("flags", [{}, {"load": ""}, {"overwrite": True}], ids=str)
def test_two_runs_at_a_time(flags, tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    root = str(Path(__file__).parents[3])
    changes = {"load": str(tmp_path)} if "load" in flags else flags
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        leave_a_run(tmp_path)
        before = contents(tmp_path)
        assert_refused(
            config(tmp_path, **changes), rf"in use by another run .process {other.pid} on "
        )
        assert contents(tmp_path) == before
        other.send_signal(signal.SIGKILL)
        other.wait()
        # Its lock is gone with it.
        with run_folder(config(tmp_path, load=str(tmp_path)).checkpoint):
            pass


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize(
    ("changes", "is_free"),
    [
        ({"ended": True}, True),
        ({"process": 2**22 + 7}, True),
        ({"process": os.getppid()}, False),
        ({"host": "another"}, False),
    ],
    ids=str,
)
def test_where_a_file_system_has_no_locks_the_file_decides(no_locks, changes, is_free, tmp_path):
    with run_folder(config(tmp_path).checkpoint):
        pass
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "ended": False, **changes}))
    if is_free:
        with run_folder(config(tmp_path, load=str(tmp_path)).checkpoint):
            return
    assert_refused(
        config(tmp_path, load=str(tmp_path)), rf"in use .*without saying so, remove .*{LOCK_FILE}"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 3}', "\x00" * 90])
def test_a_damaged_lock_file_is_written_anew(text, tmp_path):
    (tmp_path / LOCK_FILE).write_text(text)
    with run_folder(config(tmp_path).checkpoint) as id_:
        assert json.loads((tmp_path / LOCK_FILE).read_text())["id"] == id_


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("a file"), lambda path: path.symlink_to("/proc/nowhere")]
)
def test_a_folder_that_cannot_be_written(make, tmp_path):
    make(tmp_path / "run")
    assert_refused(
        config(tmp_path / "run"), r"--save .*run cannot be written: .*name another folder"
    )


def test_the_process_of_another_user_may_live():
    owner = module.Owner("0" * 32, socket.gethostname(), 1, "now")
    assert module._may_live(owner)


def test_a_run_within_the_folder_is_another_one(tmp_path):
    """Going on with it does not make the folder around it free."""
    leave_a_run(tmp_path)
    leave_a_run(tmp_path / "inner")
    before = contents(tmp_path)
    for overwrite in (False, True):
        inner = config(tmp_path, load=str(tmp_path / "inner"), overwrite=overwrite)
        assert_refused(inner, "is also where --load takes the weights from")
    assert contents(tmp_path) == before


def test_of_a_link_goes_the_link_alone(tmp_path):
    leave_a_run(tmp_path / "run")
    (tmp_path / "run" / "iter_0000006").rename(tmp_path / "archive")
    (tmp_path / "run" / "iter_0000006").symlink_to(tmp_path / "archive")
    before = contents(tmp_path / "archive")
    with run_folder(config(tmp_path / "run", overwrite=True).checkpoint):
        assert not list((tmp_path / "run").glob("iter_*"))
    assert contents(tmp_path / "archive") == before


@pytest.mark.parametrize("changes", [{}, {"overwrite": True}, {"load": "run"}], ids=repr)
def test_a_recipe_that_the_user_has_written_is_not_replaced(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("lr: 1e-5  # mine\n")
    for _ in range(2):  # The first attempt must not make the folder a run's.
        assert_refused(config(folder, **changes), "holds a config.yaml that no run has written")
    assert (folder / "config.yaml").read_text() == "lr: 1e-5  # mine\n"


def test_a_recipe_that_a_run_has_written_is_replaced(tmp_path):
    with run_folder(config(tmp_path).checkpoint):
        (tmp_path / "config.yaml").write_text("lr: 1e-5\n")
    with run_folder(config(tmp_path).checkpoint):
        pass
    # Runs of older versions have no owner.
    (tmp_path / LOCK_FILE).unlink()
    leave_a_run(tmp_path)
    with run_folder(config(tmp_path, load=str(tmp_path)).checkpoint):
        pass


@pytest.mark.parametrize("name", [LOCK_FILE, "metrics.jsonl", "log.txt"])
def test_no_link_out_of_the_folder_is_followed(name, tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_text("precious\n")
    (folder / name).symlink_to(elsewhere)
    for changes in ({}, {"overwrite": True}, {"load": str(folder)}):
        assert_refused(config(folder, **changes), f"{name} is a link")
    assert elsewhere.read_text() == "precious\n"


@pytest.mark.parametrize("name", [LOCK_FILE, "metrics.jsonl", "log.txt", "config.yaml"])
def test_a_named_pipe_in_the_folder_is_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    refused = in_daemon_thread(lambda: assert_refused(config(tmp_path), "named pipe"), "pipe")
    refused.result(timeout=20)
