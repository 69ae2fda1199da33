"""Anonymous shared memory: it has no name that a crash could leave behind."""

from __future__ import annotations

import mmap
import os
import re
import stat

import torch
from torch import Tensor

from megatron_longrl.errors import UserError

_PATH = re.compile(r"/proc/\d+/fd/\d+")


class SharedMemory:
    """Bytes that other processes of this machine can map, for as long as somebody does.

    Raises:
        UserError: there is no memory left.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._file = os.memfd_create("megatron_longrl", os.MFD_CLOEXEC)
        try:
            if nbytes:
                os.posix_fallocate(self._file, 0, nbytes)  # else a full machine is a bus error
        except OSError as error:
            os.close(self._file)
            raise UserError(
                f"no {nbytes >> 20} MiB of shared memory for rollouts:"
                f" {error.strerror}; lower --weight-bucket-mb or --embedding-store-gib"
            ) from error

    @property
    def path(self) -> str:
        """Where this user's processes on this machine can open it, until :meth:`close`."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def map(self) -> mmap.mmap:
        """Its bytes."""
        return mmap.mmap(self._file, self.nbytes)

    def write(self, data: bytes) -> None:
        """Append; for memory that was made empty."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self.nbytes += len(data)

    def close(self) -> None:
        """Give up this process's hold. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_shared_path(path: str) -> bool:
    """Whether it is a place that :attr:`SharedMemory.path` names, and nothing else."""
    return _PATH.fullmatch(path) is not None


def map_path(path: str, nbytes: int) -> Tensor:
    """Another process's shared memory, uint8 [nbytes]."""
    if not is_shared_path(path):
        raise ValueError(f"{path} is no shared memory")
    file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size < nbytes:
            raise ValueError(f"{path} has no {nbytes} bytes of shared memory")
        return torch.frombuffer(mmap.mmap(file, nbytes), dtype=torch.uint8)
    finally:
        os.close(file)
