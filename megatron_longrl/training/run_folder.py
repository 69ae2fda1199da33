"""The ownership of the ``--save`` folder by one run: no other run writes into it, or over its
files.

The first rank of a run holds a lock on ``run.lock`` in its folder as long as it lives. The file
says whose folder it is, and stays when the run ends: a run that ``--load`` continues keeps its id.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.checkpoint.folder import (
    RELEASE,
    TRACKER,
    iteration_folders,
    remove_leftovers,
)
from megatron_longrl.config.paths import run_folder as run_folder_of
from megatron_longrl.errors import UserError
from megatron_longrl.media import quarantine
from megatron_longrl.observability.logging import LOG_FILE, RECIPE_FILE
from megatron_longrl.observability.metrics_file import METRICS_FILE
from megatron_longrl.processes.leftovers import remove_once
from megatron_longrl.regular_file import check_regular, read_regular

if TYPE_CHECKING:
    from megatron_longrl.config.checkpoint import CheckpointSection

LOCK_FILE = "run.lock"

RECORDS = (METRICS_FILE, LOG_FILE, "rollouts", "wandb_run_id.txt", quarantine.FOLDER)
"""Files and folders that a run writes beside its checkpoints."""

_LARGEST_OWNER = 4096
"""The most bytes of a lock file."""

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems that have no locks."""


@dataclass(frozen=True)
class Owner:
    """The run that a folder belongs to."""

    id: str
    host: str
    process: int
    started: str
    """Local time."""
    ended: bool = False

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Read the owner of a lock file; None where there is none, or the content is no owner."""
        try:
            values = json.loads(read_regular(path, _LARGEST_OWNER))
            owner = cls(**values)
        except (OSError, ValueError, TypeError):
            return None
        types = (str, str, int, str, bool)
        fits = all(isinstance(v, t) for v, t in zip(asdict(owner).values(), types, strict=True))
        return owner if fits and len(owner.id) == 32 and owner.id.isalnum() else None

    def __str__(self) -> str:
        host, started = (
            text if text.isprintable() else repr(text) for text in (self.host, self.started)
        )
        return f"process {self.process} on {host}, since {started}"


@contextmanager
def run_folder(checkpoint: CheckpointSection) -> Iterator[str | None]:
    """Hold the ``--save`` folder of a run; gives the run's id, None without ``--save``.

    It is made in the process of the first rank.

    Raises:
        UserError: the folder cannot be written, is in use, or holds another run.
    """
    if checkpoint.save is None:
        yield None
        return
    folder = Path(checkpoint.save)
    path = folder / LOCK_FILE
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(folder))
        before = Owner.read(path)
        _lock(file, folder, before)
        goes_on = _goes_on(checkpoint, folder)
        _check_recipe(folder, before, goes_on)
        if not goes_on:
            _make_free(checkpoint, folder)
        remove_leftovers(folder)
        id_ = before.id if goes_on and before is not None else uuid.uuid4().hex
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = Owner(id_, socket.gethostname(), os.getpid(), started)
        with _written(folder):
            _write(file, owner)
        yield id_
        # Where a file system has no locks, this says that the next run may come.
        with _written(folder):
            _write(file, Owner(**{**asdict(owner), "ended": True}))


def _opened(folder: Path) -> FileIO:
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_files(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        number = os.open(folder / LOCK_FILE, flags, 0o644)
        # Without a buffer, which would be written once more, and fail, when the file is closed.
        return FileIO(number, "r+")


def _check_files(folder: Path) -> None:
    """Raise :class:`UserError` where a file that the run writes to is no regular file, or is a link
    to elsewhere."""
    check_regular(folder)
    for name in (LOCK_FILE, METRICS_FILE, LOG_FILE):
        if (folder / name).is_symlink():
            raise UserError(
                f"{folder / name} is a link, through which the run would write into another file: "
                "remove it, or name another folder as --save"
            )


def _check_recipe(folder: Path, before: Owner | None, goes_on: bool) -> None:
    """Raises :class:`UserError` where the run's recipe would replace one that no run has written.

    Args:
        folder: the folder of the run.
        before: the run that the folder belonged to until now.
        goes_on: whether this run continues the run in the folder.
    """
    recipe = folder / RECIPE_FILE
    is_runs = before is not None or (goes_on and _left(folder))
    if os.path.lexists(recipe) and not is_runs:
        raise UserError(
            f"--save {folder} holds a {RECIPE_FILE} that no run has written, and the run's own "
            "would replace it: rename it, or name another folder"
        )


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Name the folder in the errors of a block that writes to it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--save {folder} cannot be written: {error.strerror}: name another folder"
        ) from None


def _lock(file: FileIO, folder: Path, owner: Owner | None) -> None:
    """Lock a file until it is closed, which the end of the process does, too."""
    busy = f"--save {folder} is in use by another run ({owner or 'which has just begun'}): "
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{busy}wait for its end, or name another folder") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"{folder / LOCK_FILE} cannot be locked: {error.strerror}") from None
        if owner is not None and not owner.ended and _may_live(owner):
            raise UserError(
                f"{busy}wait for its end; if it has ended without saying so, remove "
                f"{folder / LOCK_FILE}"
            ) from None


def _may_live(owner: Owner) -> bool:
    """Whether an owner that has not recorded its end may be alive; another host is not asked."""
    if owner.host != socket.gethostname():
        return True
    return owner.process != os.getpid() and Path(f"/proc/{owner.process}").exists()


def _write(file: FileIO, owner: Owner) -> None:
    data = json.dumps(asdict(owner)).encode() + b"\n"
    file.seek(0)
    file.write(data)
    file.truncate()


def _goes_on(checkpoint: CheckpointSection, folder: Path) -> bool:
    """Whether the run continues the one in the folder."""
    if checkpoint.load is None or checkpoint.finetune:
        return False
    return folder.resolve() == run_folder_of(Path(checkpoint.load).resolve())


def _make_free(checkpoint: CheckpointSection, folder: Path) -> None:
    """Remove the files of another run from a folder, if ``--overwrite`` allows it.

    Raises:
        UserError: there are some, and it does not, or the run needs them itself.
    """
    found = _left(folder)
    if not found:
        return
    starts = {"load": checkpoint.load, "pretrained-checkpoint": checkpoint.pretrained_checkpoint}
    for flag, given in starts.items():
        needed = Path(given).resolve() if given is not None else None
        if needed is not None and folder.resolve() in (needed, *needed.parents):
            raise UserError(
                f"--save {folder} is also where --{flag} takes the weights from: "
                "name another folder"
            )
    if not checkpoint.overwrite:
        names = ", ".join(path.name for path in found[:3]) + (", …" if len(found) > 3 else "")
        raise UserError(
            f"--save {folder} holds another run ({names}): continue it by --load {folder}, name "
            "another folder, or replace it by --overwrite"
        )
    # The tracker first: without it nobody takes half of what goes for a run.
    for path in found:
        remove_once(path)


def _left(folder: Path) -> list[Path]:
    """Return the files of a run or of a converter in a folder; a run that ended before its first
    step counts as none."""
    named = [folder / name for name in (TRACKER, *RECORDS, RELEASE)]
    checkpoints = iteration_folders(folder).values()
    return [path for path in named if _holds_something(path)] + [*checkpoints]


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return path.name == RELEASE or any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0
