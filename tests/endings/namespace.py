"""File systems of a program's own: what it mounts, and its shared memory, no other process sees."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNS = 0x20000  # linux/sched.h
TRIES = 20
"""Mounts of a folder that are made read-only, of which one comes before a file is opened."""


def enter() -> str | None:
    """Give this process, and its children, mounts of their own, and an empty /dev/shm.

    Returns:
        Why that cannot be done here; None where it is done.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        return f"no mount namespace: {os.strerror(ctypes.get_errno())}"
    try:
        _mount("--make-rprivate", "/")
        _mount("-t", "tmpfs", "-o", "size=2g", "tmpfs", "/dev/shm")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        said = getattr(error, "stderr", None) or error
        return f"no mounts: {str(said).strip()}"
    return None


@contextmanager
def disk(folder: Path, mib: int) -> Iterator[None]:
    """A small disk at a folder, which is made; its files go with it."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill the disk of a folder.

    Args:
        leave: bytes that stay free.

    Returns:
        The file that fills it.
    """
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            found = os.statvfs(folder)
            free = found.f_bavail * found.f_frsize - leave
            if free <= 0:
                break
            file.write(bytes(min(free, 1 << 20)))
    return ballast


def make_read_only(folder: Path) -> None:
    """What has been opened can still be written, as where a server turns a folder read-only; a
    mount with open files cannot be made read-only itself."""
    for _ in range(TRIES):
        _mount("--bind", str(folder), str(folder))
        with contextlib.suppress(subprocess.CalledProcessError):
            _mount("-o", "remount,bind,ro", str(folder))
            return
        # The run has opened a file for writing since the mount was made.
        make_writable(folder)
    raise RuntimeError(f"{folder} could not be made read-only: it is busy")


def make_writable(folder: Path) -> None:
    """Undo :func:`make_read_only`."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
