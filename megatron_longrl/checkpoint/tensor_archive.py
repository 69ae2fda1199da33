"""torch's files of tensors (``torch.save``), looked through before torch reads them.

torch reads them with its restricted unpickler, which runs nothing, but trusts the sizes that they
state: a compressed entry may become a thousand times as large, a storage may be said to be larger
than what is stored of it, and some of the allowed functions allocate what they are asked for. A
file that passes takes time and memory in proportion to the bytes of the file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import torch
from torch.storage import _get_dtype_from_pickle_storage_type

from megatron_longrl.checkpoint.pickle_scan import scan

_BEGINNING = b"PK\x03\x04"
"""Other files torch reads in the ways of its older versions."""

_KNOWN = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch.serialization _get_layout",
}
"""Classes and functions, beside data types and storages, that torch writes for plain values and
dense tensors."""

_LARGEST_PICKLE = 256 << 20
"""The most bytes of the part that lists the values and tensors."""


def check_archive(file: BinaryIO, offset: int, length: int) -> None:
    """Look through one file of ``torch.save``, or the part of a file that holds one.

    Args:
        file: the file that is read.
        offset: the position where the part begins.
        length: bytes of the part.

    Raises:
        ValueError: saying why it must not be read.
    """
    window = _Window(file, offset, length)
    if window.read(len(_BEGINNING)) != _BEGINNING:
        raise ValueError("it is no archive of torch")
    with _zip_errors(), zipfile.ZipFile(window) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        _check_entries(archive.infolist(), length)
        described = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(described) != 1:
            raise ValueError("it does not say what it holds")
        if sizes[described[0]] > _LARGEST_PICKLE:
            raise ValueError(f"its list of values has {sizes[described[0]]} bytes")
        found = scan(archive.read(described[0]))
    for name in found.names:
        if name not in _KNOWN and not _is_torch_type(name):
            raise ValueError(f"it asks for {name[:100]}, which no checkpoint needs")
    prefix = described[0].removesuffix("data.pkl")
    for storage in found.storages:
        _check_storage(storage, sizes, prefix)


@contextmanager
def _zip_errors() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"it is no archive of torch: {error}") from None


def _check_entries(entries: list[zipfile.ZipInfo], length: int) -> None:
    names = {entry.filename for entry in entries}
    if len(names) != len(entries) or len({name.partition("/")[0] for name in names}) > 1:
        raise ValueError("its entries have no names of their own")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ValueError("it is compressed, which no checkpoint is")
    if sum(entry.file_size for entry in entries) > length:
        raise ValueError("its entries are larger than itself")
    if any(entry.file_size != entry.compress_size for entry in entries):
        raise ValueError("its entries have two sizes")


def _is_torch_type(name: str) -> bool:
    module, _, called = name.partition(" ")
    if module == "torch.storage":
        return called == "UntypedStorage"
    if module != "torch" or not called.isidentifier():
        return False
    return called.endswith("Storage") or isinstance(getattr(torch, called, None), torch.dtype)


def _check_storage(storage: tuple[object, ...], sizes: dict[str, int], prefix: str) -> None:
    """Is as much stored of it as it is said to have?"""
    if len(storage) != 5 or storage[0] != "storage":
        raise ValueError("a tensor says not where its numbers are")
    _, kind, key, _, count = storage
    called = str(kind).partition(" ")[2]
    try:
        itemsize = 1
        if called != "UntypedStorage":
            itemsize = _get_dtype_from_pickle_storage_type(called).itemsize
    except KeyError:
        raise ValueError(f"a tensor is of an unknown kind, {called[:50]}") from None
    stored = sizes.get(f"{prefix}data/{key}")
    if not isinstance(count, int) or stored is None or stored != count * itemsize:
        raise ValueError(f"a tensor has {stored} bytes where it says {count} x {itemsize}")


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._position = 0

    def seekable(self) -> bool:
        """Always."""
        return True

    def readable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See :class:`io.IOBase`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """See :class:`io.IOBase`."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """See :class:`io.RawIOBase`."""
        left = max(0, self._length - self._position)
        size = left if size is None or size < 0 else min(size, left)
        self._file.seek(self._offset + self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data
