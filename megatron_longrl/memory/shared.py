"""Anonymous shared memory: it has no name that a crash could leave behind."""

from __future__ import annotations

import fcntl
import mmap
import os

import torch
from torch import Tensor

from megatron_longrl.errors import UserError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_BLOCK = 512
"""Bytes of a block of ``st_blocks``."""


class SharedMemory:
    """Bytes that other processes of this machine can map, for as long as somebody does.

    Its size is sealed: a process that maps it needs no trust that it stays.

    Args:
        nbytes: 0 makes memory without a seal, to which :meth:`write` appends.

    Raises:
        UserError: there is no memory left.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if nbytes else 0)
        self._file = os.memfd_create("megatron_longrl", flags)
        try:
            if nbytes:
                os.posix_fallocate(self._file, 0, nbytes)  # else a full machine is a bus error
                fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(self._file)
            raise UserError(
                f"no {nbytes >> 20} MiB of shared memory for rollouts:"
                f" {error.strerror}; lower --weight-bucket-mib or --embedding-store-gib"
            ) from error

    @classmethod
    def of_another(cls, file: int, nbytes: int) -> SharedMemory:
        """Memory of another process, which is not trusted.

        Args:
            file: a descriptor of it, whatever it is; kept where nothing is raised.
            nbytes: the size in bytes that the memory must have.

        Raises:
            ValueError: it is no shared memory of this size, could shrink, cannot be mapped for
                reading and writing, or has holes, that would take memory when they are read.
        """
        try:
            # Nothing else is asked of a file before it is known to be memory: others can block.
            seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
        except OSError:
            raise ValueError("the descriptor is no shared memory") from None
        if seals & _SEALS != _SEALS:
            raise ValueError("the shared memory is not sealed: it could shrink")
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise ValueError("the shared memory is not open for reading and writing")
        status = os.fstat(file)
        if status.st_size != nbytes or not nbytes:
            raise ValueError(f"the shared memory has {status.st_size} bytes, not {nbytes}")
        if status.st_blocks * _BLOCK < nbytes:
            raise ValueError("the shared memory has holes")
        memory = cls.__new__(cls)
        memory.nbytes, memory._file = nbytes, file
        return memory

    @property
    def path(self) -> str:
        """Return the path by which the processes of this program can open the memory, until
        :meth:`close`."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def fileno(self) -> int:
        """Return the descriptor of the memory in this process."""
        return self._file

    def map(self) -> mmap.mmap:
        """Map the memory."""
        return mmap.mmap(self._file, self.nbytes)

    def duplicate(self) -> SharedMemory:
        """The same bytes, held on their own."""
        memory = type(self).__new__(type(self))
        memory.nbytes, memory._file = self.nbytes, os.dup(self._file)
        return memory

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


def map_path(path: str, nbytes: int) -> Tensor:
    """The memory at a :attr:`SharedMemory.path` of this program, uint8 [nbytes]."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return torch.frombuffer(mmap.mmap(file, nbytes), dtype=torch.uint8)
    finally:
        os.close(file)
