"""Media embeddings in shared memory: one physical copy per model replica and node.

A video is encoded once for each version of the encoder; its embeddings are then read by the engine
for all responses, by the policy, and by the reference, over as many steps as the budget holds them.
Every rank of the replica maps the same file. All ranks make the same calls in the same order, so
each keeps the same books, and which entry is evicted needs no communication. The ranks agree on the
entries of the disk before they read them, because they encode the rest together.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
import uuid
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.errors import UserError
from megatron_longrl.media.disk_cache import EmbeddingDisk, EmbeddingKey
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.processes.leftovers import leftovers

T = TypeVar("T")

_PREFIX = "megatron_longrl-embeddings-"
_LOCK = "owner.lock"


@dataclass
class _Entry:
    path: Path
    shape: torch.Size
    nbytes: int
    tensor: Tensor | None = None


class EmbeddingStore:
    """Least-recently-used store of embeddings within a budget.

    Every rank of ``group`` calls :meth:`get`, :meth:`put`, :meth:`load` and
    :meth:`drop_other_versions` with the same keys in the same order. Tensors from the store are
    shared: read them, never write into them. They stay valid after eviction for as long as they are
    referenced.

    Args:
        budget_bytes: most bytes of embeddings per replica and node.
        dtype: the training dtype; embeddings are kept bit for bit, so they must have this dtype.
        directory: the folder of this store, which exists (see :func:`open_store`).
        owner: whether this rank writes new embeddings, and deletes the files on this node; exactly
            one per node does.
        group: gloo group of the replica, over which a failed write becomes everyone's error.
        hosts: a name of the host of every rank of the group; by default one host has all of them.
        disk: where embeddings are kept beyond this memory and this job, if anywhere.
    """

    def __init__(
        self,
        budget_bytes: int,
        dtype: torch.dtype,
        directory: Path,
        *,
        owner: bool = True,
        group: ProcessGroup | None = None,
        hosts: Collection[str] = ("",),
        disk: EmbeddingDisk | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.dtype = dtype
        self.directory = directory
        self.disk = disk
        self.hits = 0
        self.hits_on_disk = 0
        self.misses = 0
        """Number of lookups that did not find the key in memory."""
        self.evictions = 0
        self.bytes = 0
        self._owner = owner
        self._group = group
        self._hosts = list(hosts)
        self._entries: OrderedDict[EmbeddingKey, _Entry] = OrderedDict()
        self._lock = _take_lock(directory) if owner else None
        atexit.register(self.close)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: EmbeddingKey) -> bool:
        return key in self._entries

    def has(self, key: EmbeddingKey) -> bool:
        """Whether embeddings are in memory or, as far as this rank sees, on disk."""
        return key in self._entries or (self.disk is not None and key in self.disk)

    def has_room_for(self, shapes: Iterable[Sequence[int]]) -> bool:
        """Whether embeddings of these shapes fit together, were everything else to leave."""
        return sum(map(prod, shapes)) * self.dtype.itemsize <= self.budget_bytes

    def get(self, key: EmbeddingKey) -> Tensor | None:
        """The embeddings [tokens, h] on CPU, mapped from shared memory; None counts as a miss."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return self._map(entry)

    def load(self, wanted: Mapping[EmbeddingKey, torch.Size]) -> dict[EmbeddingKey, Tensor]:
        """Load the entries that the disk has; collective over the group.

        A key counts as there if the ranks of every node find it. These share the reading: each
        brings other videos into the node's memory.

        Args:
            wanted: keys that are not in memory -> shape [tokens, h].

        Returns:
            Key -> the shared tensor, the same keys on every rank. Embeddings that do not fit into
            the budget are private to the rank.

        Raises:
            UserError: on all ranks when one cannot write into shared memory.
        """
        if self.disk is None or not wanted:
            return {}
        mine = self._share_of(list(wanted))
        found = Counter(
            key for part in self._gather([key for key in mine if key in self.disk]) for key in part
        )
        nodes = len(set(self._hosts))
        shapes = {key: shape for key, shape in wanted.items() if found[key] == nodes}
        fresh = self._admit(shapes)
        self._gather(None)  # the owner has made room
        private: dict[EmbeddingKey, Tensor] = {}
        lost = []
        with self._writing(fresh):
            for key, shape in shapes.items():
                if key in fresh and key not in mine:
                    continue
                tensor = torch.empty(shape, dtype=self.dtype)
                if not self.disk.read(key, tensor):
                    lost.append(key)
                elif key in fresh:
                    _write(fresh[key].path, tensor)
                else:
                    private[key] = tensor
        for key in {key for part in self._gather(lost) for key in part}:
            del shapes[key]
            if key in fresh:
                self._drop(key)
        self.hits_on_disk += len(shapes)
        return {key: self._map(fresh[key]) if key in fresh else private[key] for key in shapes}

    def put(
        self,
        items: Mapping[EmbeddingKey, Tensor],
        outlive_run: Collection[str] | None = None,
    ) -> dict[EmbeddingKey, Tensor]:
        """Keep embeddings, also on disk where there is one; collective over the group.

        Args:
            items: key -> [tokens, h]. Only the owner's values are read; the other ranks may pass
                tensors on the ``meta`` device.
            outlive_run: keys of the media that the disk keeps; by default all.

        Returns:
            Key -> the shared tensor, so that private copies can be freed; the given tensor where it
            is larger than the whole budget and was not kept.

        Raises:
            UserError: on all ranks when the owner cannot write, for example because shared memory
                is full.
        """
        for tensor in items.values():
            if tensor.dtype != self.dtype:
                raise TypeError(f"embeddings are {tensor.dtype}, the store keeps {self.dtype}")
        shared = dict(items)
        fresh = self._admit({key: tensor.shape for key, tensor in items.items()})
        with self._writing(fresh):
            if self._owner:
                for key, entry in fresh.items():
                    _write(entry.path, items[key])
        for key in shared:
            if key in self._entries:
                self._entries.move_to_end(key)
                shared[key] = self._map(self._entries[key])
        if self.disk is not None:
            size = self._group.size() if self._group is not None else 1
            rank = self._group.rank() if self._group is not None else 0
            mine = [k for k in shared if outlive_run is None or k[0] in outlive_run][rank::size]
            self.disk.write({key: shared[key] for key in mine if not shared[key].is_meta})
        return shared

    def drop_other_versions(self, versions: Collection[str]) -> None:
        """Forget, in memory, what other encoders, or other weights of these, made."""
        for key in [key for key in self._entries if key[1] not in versions]:
            self._drop(key)

    def close(self) -> None:
        """Forget everything; the owner removes the folder. Idempotent, called at exit."""
        atexit.unregister(self.close)
        self._entries.clear()
        self.bytes = 0
        if self._lock is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            leftovers.discard(self.directory)
            os.close(self._lock)
            self._lock = None

    def _admit(self, shapes: Mapping[EmbeddingKey, torch.Size]) -> dict[EmbeddingKey, _Entry]:
        """Record the new entries that fit, and evict others for them.

        Returns:
            The new entries, whose files are to be written.
        """
        fresh: dict[EmbeddingKey, _Entry] = {}
        for key, shape in shapes.items():
            nbytes = shape.numel() * self.dtype.itemsize
            if key not in self._entries and 0 < nbytes <= self.budget_bytes:
                self._make_room(nbytes, fresh)
                entry = _Entry(self._path(key), shape, nbytes)
                self._entries[key] = fresh[key] = entry
                self.bytes += nbytes
        return fresh

    def _share_of(self, keys: list[EmbeddingKey]) -> set[EmbeddingKey]:
        """Return the keys that this rank reads for its node."""
        rank = self._group.rank() if self._group is not None else 0
        neighbours = [r for r, host in enumerate(self._hosts) if host == self._hosts[rank]]
        return set(keys[neighbours.index(rank) :: len(neighbours)])

    def _gather(self, value: T) -> list[T]:
        return gather_objects(self._group, value) if self._group is not None else [value]

    @contextlib.contextmanager
    def _writing(self, fresh: Mapping[EmbeddingKey, _Entry]) -> Iterator[None]:
        """Write the files of new entries; where one rank cannot, all ranks fail and drop the
        entries."""
        try:
            with (
                raise_on_all_ranks(self._group)
                if self._group is not None
                else contextlib.nullcontext()
            ):
                yield
        except Exception:
            for key in fresh:
                self._drop(key)
            raise

    def _path(self, key: EmbeddingKey) -> Path:
        name = hashlib.sha256(f"{key[0]}\0{key[1]}".encode()).hexdigest()
        return self.directory / f"{name}.bin"

    def _map(self, entry: _Entry) -> Tensor:
        if entry.tensor is None:
            flat = torch.from_file(
                str(entry.path), shared=True, size=entry.shape.numel(), dtype=self.dtype
            )
            entry.tensor = flat.view(entry.shape)
        return entry.tensor

    def _make_room(self, nbytes: int, fresh: dict[EmbeddingKey, _Entry]) -> None:
        while self.bytes + nbytes > self.budget_bytes:
            oldest = next(iter(self._entries))
            self._drop(oldest)
            fresh.pop(oldest, None)
            self.evictions += 1

    def _drop(self, key: EmbeddingKey) -> None:
        entry = self._entries.pop(key)
        self.bytes -= entry.nbytes
        if self._owner:
            entry.path.unlink(missing_ok=True)


def open_store(
    budget_bytes: int,
    dtype: torch.dtype,
    group: ProcessGroup,
    root: Path | None = None,
    *,
    disk_folder: Path | None = None,
    disk_bytes: int = 0,
) -> EmbeddingStore:
    """Open a new store for the replica whose gloo group is ``group``; collective over it.

    The lowest rank of each node owns the files there, in a folder of their own under ``root``
    (shared memory where the machine has it, else the temporary folder). Folders that dead jobs left
    are removed first: the owner of a live one holds a lock in it.

    Args:
        disk_folder, disk_bytes: see :class:`EmbeddingDisk`; None keeps nothing on disk.
    """
    if root is None:
        shm = Path("/dev/shm")
        root = shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
    hosts = gather_objects(group, socket.gethostname())
    first_on_host = hosts.index(hosts[group.rank()])
    owner = first_on_host == group.rank()
    directory: Path | None = None
    store: EmbeddingStore | None = None
    with raise_on_all_ranks(group):
        disk = EmbeddingDisk(disk_folder, disk_bytes) if disk_folder is not None else None
        if owner:
            root.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(root)
            final = root / f"{_PREFIX}{uuid.uuid4().hex}"
            directory = final.with_name(f".{final.name}")
            for path in (directory, final):
                leftovers.add(path)
            directory.mkdir(mode=0o700)
            store = EmbeddingStore(
                budget_bytes, dtype, directory, owner=True, group=group, hosts=hosts, disk=disk
            )
            # The lock is held before the folder has a name that others may sweep.
            store.directory = final
            os.rename(directory, final)
            leftovers.discard(directory)
    directories = gather_objects(group, store.directory if store is not None else None)
    if store is None:
        shared = directories[first_on_host]
        assert shared is not None, "the first rank of every node made its folder"
        store = EmbeddingStore(
            budget_bytes, dtype, shared, owner=False, group=group, hosts=hosts, disk=disk
        )
    return store


def _take_lock(directory: Path) -> int:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_leftovers(root: Path) -> None:
    for directory in root.glob(f"{_PREFIX}*"):
        try:
            lock = _take_lock(directory)
        except OSError:  # its job lives, or it is another user's
            continue
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _write(path: Path, tensor: Tensor) -> None:
    """Write under a temporary name and rename: a file under its final name is complete."""
    aside = path.with_suffix(".part")
    try:
        # Reserve the space first: writing into a mapping of a full tmpfs would be a bus error.
        with open(aside, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
        flat = torch.from_file(str(aside), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        flat.copy_(tensor.detach().reshape(-1))
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(
            f"cannot keep {tensor.nbytes >> 20} MiB of media embeddings in {path.parent}:"
            f" {error.strerror}; lower --embedding-store-gib or free shared memory"
        ) from error
