"""``.metadata`` of a distributed checkpoint, read without running anything that is in it.

torch writes this file as a pickle and reads it with ``pickle.load``, which calls whatever function
the file names. Here the same file is read by an unpickler that knows a short list of classes, and
what it gives is checked. megatron-core's and torch's readers get the result
(:mod:`megatron_longrl.checkpoint.dist_reader`) instead of the file, which somebody could have
replaced since.

Reading takes time and memory in proportion to the bytes of the files
(:mod:`megatron_longrl.checkpoint.pickle_scan`, :mod:`megatron_longrl.checkpoint.tensor_archive`),
and the tensors that the file lists are as large as what is stored of them.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_longrl.checkpoint.pickle_scan import scan
from megatron_longrl.checkpoint.tensor_archive import check_archive
from megatron_longrl.errors import UserError, brief
from megatron_longrl.json_file import read_json
from megatron_longrl.regular_file import open_regular, read_regular

METADATA = ".metadata"
COMMON = "common.pt"
BACKENDS = "metadata.json"

BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""Contents of ``metadata.json``: another format would be read by other code of megatron-core."""

_KNOWN = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # Python 3.13 and later
}
"""Classes and functions that torch writes into the file. None of them does anything but make a
value."""

_SHARD = re.compile(r"__\d{1,9}_\d{1,9}\.distcp")
_PICKLED = re.compile(r"[^/]*\._extra_state/shard_[\d_.]+")
"""Entries that are pickles, whose contents no program here reads (Transformer Engine's)."""

_MOST_ALIKE = 16
"""Keys that may have one hash."""

_LARGEST = 1 << 40
_MOST_AXES = 64
_LARGEST_METADATA = 4 << 30
"""The most bytes of the file; that of a large model on a thousand ranks has some hundred MiB."""


class _Index:
    """Stands for :class:`MetadataIndex`, a key of dictionaries, while the file is read.

    That class is hashed by numbers of the file, which can be chosen so that all keys have one hash:
    a dictionary of n of them then takes n^2 steps. This one is hashed by text, which Python does
    with a secret.
    """

    fqn: object = None
    offset: object = None

    def __hash__(self) -> int:
        return hash(str((self.fqn, self.offset)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and (self.fqn, self.offset) == (other.fqn, other.offset)


class _Unpickler(pickle.Unpickler):
    """Makes values of known classes only."""

    def find_class(self, module: str, name: str) -> Any:
        if name == MetadataIndex.__name__ and name in _KNOWN.get(module, ()):
            return _Index
        known = name in _KNOWN.get(module, ())
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            known = True
        if not known:
            raise _Foreign(f"{module}.{name}"[:100])
        return super().find_class(module, name)


class _Foreign(Exception):
    """The file names a class or function that is not on the list."""


def check_core_files(folder: str | Path, rank: int = 0, size: int = 1) -> Metadata:
    """Check that megatron-core can read this checkpoint without running code in it.

    Args:
        folder: the folder of one iteration.
        rank: looks through every ``size``-th file of tensors, beginning with this one; together the
            ranks look through all.
        size: number of ranks.

    Returns:
        The list of tensors.

    Raises:
        UserError: naming the file that is damaged, or made by someone who wants to run code.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    path = folder / BACKENDS
    if read_json(path) != BACKEND:
        raise _damaged(path, "it names another format than torch_dist")
    path = folder / COMMON
    _check_archives(path, [("", 0, path.stat().st_size if path.is_file() else 0)])
    entries = metadata.state_dict_metadata
    places: dict[str, list[tuple[str, int, int]]] = {}
    for index, place in metadata.storage_data.items():
        if isinstance(entries[index.fqn], TensorStorageMetadata):
            part = (f"{index.fqn}: ", place.offset, place.length)
            places.setdefault(place.relative_path, []).append(part)
    for name in sorted(places)[rank::size]:
        _check_archives(folder / name, places[name])
    return metadata


def _check_archives(path: Path, parts: Sequence[tuple[str, int, int]]) -> None:
    """Look through a file of :func:`torch.save`, or of several, one behind the other.

    Args:
        path: the path of the file.
        parts: for each part, its contents (for the message), its offset and its size in bytes.
    """
    try:
        with open_regular(path) as file:
            for holds, offset, length in parts:
                try:
                    check_archive(file, offset, length)
                except (ValueError, AssertionError, IndexError) as error:
                    raise _damaged(path, f"{holds}{error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_metadata(folder: str | Path) -> Metadata:
    """Read the metadata like torch's own reader, from a file that holds nothing else.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    path = Path(folder) / METADATA
    try:
        data = read_regular(path, _LARGEST_METADATA)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    try:
        scan(data)
        found = _Unpickler(io.BytesIO(data)).load()
    except _Foreign as error:
        raise UserError(
            f"{path} asks for {error}, which no checkpoint needs: reading it could run code of "
            "whoever wrote it, so it is not read"
        ) from None
    except MemoryError:
        raise _damaged(path, "it asks for more memory than there is") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(found, Metadata):
        raise _damaged(path, "it holds no list of tensors")
    reason = _restore_keys(found) or _wrong(found, Path(folder))
    if reason is not None:
        raise _damaged(path, reason)
    return found


def _restore_keys(metadata: Metadata) -> str | None:
    """Replace our keys by torch's; returns what keeps them from it."""
    places = metadata.storage_data
    if not isinstance(places, dict):
        return "it holds no list of tensors"
    for index in places:
        if not isinstance(index, _Index) or not isinstance(index.fqn, str):
            return "a place belongs to no tensor"
        if index.offset is not None and not _is_size(index.offset):
            return f"a place of {index.fqn} is at no offset"
    hashes = sorted(hash((index.fqn, index.offset)) for index in places)
    if any(a == b for a, b in zip(hashes, hashes[_MOST_ALIKE:], strict=False)):
        return "its keys have one hash, which makes reading it slow"
    metadata.storage_data = {
        MetadataIndex(index.fqn, index.offset): place for index, place in places.items()
    }
    return None


def _wrong(metadata: Metadata, folder: Path) -> str | None:
    """Return the reason why the tensors cannot be read; None where they can."""
    entries, places = metadata.state_dict_metadata, metadata.storage_data
    if not isinstance(entries, dict):
        return "it holds no list of tensors"
    for name, entry in entries.items():
        if not isinstance(name, str):
            return "a name is no text"
        if isinstance(entry, BytesStorageMetadata):
            if not _PICKLED.fullmatch(name):
                return f"{name} is a pickle where a tensor has to be"
        elif not _is_tensor(entry):
            return f"the entry of {name} is no tensor's"
    sizes: dict[str, int] = {}
    used: dict[str, int] = {}
    for index, place in places.items():
        if index.fqn not in entries:
            return "a place belongs to no tensor"
        if not _is_place(place):
            return f"the place of {index.fqn} is none"
        file = place.relative_path
        if file not in sizes:
            path = folder / file
            sizes[file] = path.stat().st_size if path.is_file() else -1
        if sizes[file] < 0:
            return f"{folder / file} is missing"
        if place.offset + place.length > sizes[file]:
            return f"{index.fqn} lies beyond the end of {file}"
        used[file] = used.get(file, 0) + place.length
        if used[file] > sizes[file]:
            return f"what lies in {file} is larger than the file"
    return _wrong_sizes(metadata)


def _wrong_sizes(metadata: Metadata) -> str | None:
    """Return the first tensor whose size differs from its stored parts; None where all agree."""
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        for chunk in entry.chunks:
            place = metadata.storage_data.get(MetadataIndex(name, chunk.offsets))
            needed = math.prod(chunk.sizes) * entry.properties.dtype.itemsize
            if place is None or place.length < needed:
                return f"{name} has {needed} bytes, and fewer are stored"
            ends = (a + b for a, b in zip(chunk.offsets, chunk.sizes, strict=True))
            if any(end > length for end, length in zip(ends, entry.size, strict=True)):
                return f"a part of {name} lies outside of it"
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            return f"the parts of {name} are not the whole"
    return None


def _is_tensor(entry: object) -> bool:
    return (
        isinstance(entry, TensorStorageMetadata)
        and isinstance(getattr(entry.properties, "dtype", None), torch.dtype)
        and _is_size(entry.size)
        and isinstance(entry.chunks, list)
        and all(
            isinstance(chunk, ChunkStorageMetadata)
            and _is_size(chunk.offsets)
            and _is_size(chunk.sizes)
            and len(chunk.offsets) == len(chunk.sizes) == len(entry.size)
            for chunk in entry.chunks
        )
    )


def _is_size(size: object) -> bool:
    if not isinstance(size, torch.Size) or len(size) > _MOST_AXES:
        return False
    return all(0 <= length < _LARGEST for length in size)


def _is_place(place: object) -> bool:
    return (
        isinstance(place, _StorageInfo)
        and isinstance(place.relative_path, str)
        and _SHARD.fullmatch(place.relative_path) is not None
        and not getattr(place, "transform_descriptors", None)
        and type(place.offset) is type(place.length) is int
        and min(place.offset, place.length) >= 0
    )


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {brief(reason)}")
