"""A cache of media embeddings on disk, in a folder that outlives a job and that jobs can share.

One safetensors file holds the embeddings of one video. Its name is the hash of all that they depend
on (content, frames and preprocessing, weights of the encoder, dtype), so that no name ever stands
for two values: any number of ranks, replicas, nodes and jobs read and write one folder without a
lock. A file is written aside and renamed, so that under its name it is whole; what nevertheless is
not what its name says (a crashed file system, a foreign file) is dropped and encoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
import uuid
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.memory.tensor_file import DTYPES

logger = logging.getLogger(__name__)

EmbeddingKey = tuple[str, str]
"""(``MediaSpec.key()``, version of the encoder's weights)."""

FORMAT = 2
"""Version of the entries, in their names. Raise it when the same key comes to mean other
embeddings."""

_TENSOR = "embeddings"
_LARGEST_HEADER = 4096
"""Bytes; ours has some 300."""
_ABANDONED_SECONDS = 3600.0
"""Age at which a file that someone was writing belongs to a job that is dead."""
_LISTINGS_APART = 20.0
"""The multiple of the time that the last listing of the folder took; a large one on a network takes
seconds."""
_KEPT = re.compile(r"[0-9a-f]{64}\.safetensors")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{32}\.part")


class EmbeddingDisk:
    """A folder of embeddings within a budget; what was not used for longest leaves first.

    No method communicates, and none raises for what is wrong in the folder: a file that cannot be
    read is not there, one that cannot be written is not kept.

    Args:
        folder: exists or is made.
        budget_bytes: most bytes of files in it, whoever wrote them. Ranks that write at the same
            time may exceed it by what they have written since the others last listed the folder,
            which takes them at most a twentieth of their time.

    Raises:
        UserError: the folder can be neither made nor written to.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.bytes = 0
        """Bytes in the folder, as far as this rank knows."""
        self._files: deque[_File] = deque()
        """Files that the folder had when it was last listed, and those written since, the oldest
        first."""
        self._list_again_at = 0.0
        self._has_warned = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"cannot keep embeddings in {folder}: {error.strerror}; give another "
                "--embedding-cache-dir, or leave it out"
            ) from error

    def __contains__(self, key: EmbeddingKey) -> bool:
        return os.path.isfile(self.path(key))  # Path.is_file raises where it may not look

    def path(self, key: EmbeddingKey) -> Path:
        """Return the path of a key's file."""
        name = hashlib.sha256(_identity(key).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, key: EmbeddingKey, target: Tensor) -> bool:
        """Fill a contiguous CPU tensor with the embeddings of a key, which counts as use.

        A file with other contents than expected is removed, with a warning; the target then holds
        anything.

        Returns:
            Whether they were there.
        """
        path = self.path(key)
        try:
            # Read, not mapped: where another machine removes a mapped file, the next look at it is
            # a bus error.
            with path.open("rb") as file:
                _fill(target, file, _identity(key))
        except FileNotFoundError:
            return False
        except _Foreign as error:
            logger.warning("%s is dropped and encoded again: %s", path, error)
            _remove(path)
            return False
        except OSError as error:
            logger.warning("%s cannot be read and is encoded again: %s", path, error.strerror)
            return False
        with contextlib.suppress(OSError):
            os.utime(path)
        return True

    def write(self, items: Mapping[EmbeddingKey, Tensor]) -> int:
        """Keep embeddings, CPU tensors; returns how many files were written.

        Entries that are there already count as used; entries beyond the whole budget are not kept.
        """
        written = 0
        for key, tensor in items.items():
            path = self.path(key)
            try:
                os.utime(path)
                continue
            except OSError:
                pass  # it is not there, which is why it is written
            size = tensor.nbytes + _LARGEST_HEADER
            if size > self.budget_bytes:
                continue
            try:
                self._make_room(size)
                self._write(path, key, tensor)
            except (OSError, SafetensorError) as error:
                if not self._has_warned:  # and not for every video of the run
                    self._has_warned = True
                    logger.warning("embeddings are not kept in %s: %s", self.folder, error)
                continue
            self._files.append(_File(time.time(), size, path))
            self.bytes += size
            written += 1
        return written

    def _write(self, path: Path, key: EmbeddingKey, tensor: Tensor) -> None:
        access = self.folder.stat().st_mode & 0o777
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(access)
        aside = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
        tensor = tensor.detach().contiguous()
        written = {"identity": _identity(key), "crc32": _checksum(tensor)}
        try:
            save_file({_TENSOR: tensor}, aside, metadata=written)
            # safetensors lets only the owner read; those who share the folder share all of it.
            aside.chmod(access & 0o666)
            with open(aside, "rb") as file:
                os.fsync(file.fileno())  # or a crash of the machine could leave a file of zeros
            os.replace(aside, path)
        finally:
            _remove(aside)

    def _make_room(self, nbytes: int) -> None:
        """Remove the files that were not used for longest."""
        began = time.monotonic()
        if began >= self._list_again_at:
            self._files = deque(sorted(self._list()))
            self.bytes = sum(file.size for file in self._files)
            now = time.monotonic()
            self._list_again_at = now + _LISTINGS_APART * (now - began)
        while self._files and self.bytes + nbytes > self.budget_bytes:
            oldest = self._files.popleft()
            used = _last_use(oldest.path)
            if used is not None and used > oldest.used:
                self._files.append(replace(oldest, used=used))  # since it was listed
                continue
            _remove(oldest.path)
            self.bytes -= oldest.size

    def _list(self) -> Iterator[_File]:
        """List the cache's own files; other files in the folder are not touched."""
        now = time.time()
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            try:
                stat = path.stat()
            except OSError:
                continue  # another job has removed it
            if _KEPT.fullmatch(path.name):
                yield _File(stat.st_mtime, stat.st_size, path)
            elif _UNFINISHED.fullmatch(path.name) and now - stat.st_mtime > _ABANDONED_SECONDS:
                _remove(path)


@dataclass(frozen=True, order=True)
class _File:
    used: float
    """Time of the last read or write, in seconds since 1970."""
    size: int
    path: Path


class _Foreign(Exception):
    """A file whose content does not match its name."""


def _identity(key: EmbeddingKey) -> str:
    video, encoder = key
    return f"{FORMAT}/{video}/{encoder}"


def _fill(target: Tensor, file: BinaryIO, identity: str) -> None:
    """Read a safetensors file of one tensor (huggingface/safetensors, README.md: eight bytes with
    the header's length, the header as JSON, the data).

    Raises:
        _Foreign: it is another kind of file, or holds something else.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= _LARGEST_HEADER:
        raise _Foreign("it is no file of embeddings")
    try:
        header = json.loads(file.read(length))
        written, found = dict(header["__metadata__"]), header[_TENSOR]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Foreign("it is no file of embeddings") from None
    wanted = {
        "dtype": DTYPES[target.dtype],
        "shape": list(target.shape),
        "data_offsets": [0, target.nbytes],
    }
    if written.get("identity") != identity or found != wanted:
        raise _Foreign(f"it holds {found}, not {wanted}, or those of another video")
    count = file.readinto(_bytes(target))  # type: ignore[attr-defined]
    if count != target.nbytes:
        raise _Foreign(f"it ends after {count} of {target.nbytes} bytes")
    if written.get("crc32") != _checksum(target):
        raise _Foreign("its checksum is wrong")


def _checksum(tensor: Tensor) -> str:
    """CRC-32 of the bytes: what can still be wrong in a file of the right length."""
    return f"{zlib.crc32(_bytes(tensor)):08x}"


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


def _last_use(path: Path) -> float | None:
    """Seconds since 1970; None where there is no such file any more."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, error.strerror)
