"""``.metadata`` of a distributed checkpoint, read without running anything that is in it.

torch writes this file as a pickle and reads it with ``pickle.load``, which calls whatever function
the file names. Here the same file is read by an unpickler that knows a short list of classes, and
what it gives is checked. A file that passes is harmless for torch's own reader, too, so
:func:`check_core_files` stands before every use of megatron-core's or torch's reader.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

from megatron_longrl.errors import UserError, brief
from megatron_longrl.json_file import read_json

METADATA = ".metadata"
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

_LARGEST = 1 << 40


class _Unpickler(pickle.Unpickler):
    """Makes values of known classes only."""

    def find_class(self, module: str, name: str) -> Any:
        known = name in _KNOWN.get(module, ())
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            known = True
        if not known:
            raise _Foreign(f"{module}.{name}"[:100])
        return super().find_class(module, name)


class _Foreign(Exception):
    """The file names a class or function that is not on the list."""


@contextmanager
def _unchanged_classes() -> Iterator[None]:
    """Around an unpickler: a pickle may set attributes of any class that it names, which would
    change it for the whole process.

    Raises:
        _Foreign: it has done so; the classes are then again as they were.
    """
    classes = [
        value
        for module, names in _KNOWN.items()
        for name in names
        if isinstance(value := getattr(sys.modules.get(module), name, None), type)
    ]
    before = [dict(vars(one)) for one in classes]
    try:
        yield
    finally:
        changed = None
        for one, attributes in zip(classes, before, strict=True):
            for name, value in dict(vars(one)).items():
                if name not in attributes:
                    delattr(one, name)
                elif value is not attributes[name]:
                    setattr(one, name, attributes[name])
                else:
                    continue
                changed = f"a change of {one.__module__}.{one.__qualname__}.{name}"[:100]
        if changed is not None:
            raise _Foreign(changed)


def check_core_files(folder: str | Path) -> None:
    """Can megatron-core read this checkpoint without running what is in it?

    Raises:
        UserError: naming the file that is damaged, or made by someone who wants to run code.
    """
    read_metadata(folder)
    path = Path(folder) / BACKENDS
    if read_json(path) != BACKEND:
        raise _damaged(path, "it names another format than torch_dist")


def read_metadata(folder: str | Path) -> Metadata:
    """What torch's own reader gives, from a file that holds nothing else.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    path = Path(folder) / METADATA
    try:
        with path.open("rb") as file, _unchanged_classes():
            found = _Unpickler(file).load()
            trailing = file.read(1)
    except _Foreign as error:
        raise UserError(
            f"{path} asks for {error}, which no checkpoint needs: reading it could run code of "
            "whoever wrote it, so it is not read"
        ) from None
    except MemoryError:
        raise _damaged(path, "it asks for more memory than there is") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if trailing or not isinstance(found, Metadata):
        raise _damaged(path, "it holds no list of tensors")
    reason = _wrong(found, Path(folder))
    if reason is not None:
        raise _damaged(path, reason)
    return found


def _wrong(metadata: Metadata, folder: Path) -> str | None:
    """What keeps the tensors from being read; None where nothing does."""
    entries, places = metadata.state_dict_metadata, metadata.storage_data
    if not isinstance(entries, dict) or not isinstance(places, dict):
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
    for index, place in places.items():
        if not isinstance(index, MetadataIndex) or index.fqn not in entries:
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
    return isinstance(size, torch.Size) and all(0 <= length < _LARGEST for length in size)


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
