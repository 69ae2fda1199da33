"""The store of media embeddings in one process and seen from a second one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.media import embedding_store
from megatron_longrl.media.embedding_store import EmbeddingStore, _remove_leftovers

ROW = 8 * 2  # bytes of one bf16 row


def rows(count: int, seed: int = 0) -> Tensor:
    """[count, 8] bf16."""
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddingStore]:
    folder = tmp_path / "store"
    folder.mkdir()
    store = EmbeddingStore(10 * ROW, torch.bfloat16, folder)
    yield store
    store.close()


def files(store: EmbeddingStore) -> list[Path]:
    return list(store.directory.glob("*.bin"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_every_bit_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    store = EmbeddingStore(1 << 20, dtype, tmp_path)
    width = torch.int16 if dtype.itemsize == 2 else torch.int32
    bits = torch.arange(-3000, 3000, dtype=width).view(-1, 4)  # NaNs and denormals too
    shared = store.put({("video", "3"): bits.view(dtype)})
    for tensor in (shared["video", "3"], store.get(("video", "3"))):
        assert tensor is not None and tensor.dtype == dtype
        assert torch.equal(tensor.view(width), bits)
    store.close()


def test_another_dtype_is_refused(store: EmbeddingStore) -> None:
    with pytest.raises(TypeError, match="float32"):
        store.put({("video", "0"): torch.zeros(1, 8)})


def test_the_training_dtype_is_what_is_stored_and_once_defect_13(store: EmbeddingStore) -> None:
    """A prompt's n rollouts and passes all read the same bytes: nothing is cast or repeated."""
    shared = store.put({("video", "0"): rows(6)})["video", "0"]
    readers = [store.get(("video", "0")) for _ in range(8)]
    assert [path.stat().st_size for path in files(store)] == [6 * ROW] == [store.bytes]
    addresses = {tensor.data_ptr() for tensor in readers if tensor is not None}
    assert addresses == {shared.data_ptr()}


def test_the_least_recently_used_leaves_first(store: EmbeddingStore) -> None:
    store.put({("a", "0"): rows(4), ("b", "0"): rows(4)})
    assert store.get(("a", "0")) is not None
    store.put({("c", "0"): rows(4)})
    assert store.get(("b", "0")) is None
    assert store.get(("a", "0")) is not None and store.get(("c", "0")) is not None
    assert (store.hits, store.misses, store.evictions) == (3, 1, 1)
    assert store.bytes == 8 * ROW
    assert len(files(store)) == 2


def test_an_evicted_tensor_in_use_stays_valid(store: EmbeddingStore) -> None:
    held = store.put({("a", "0"): rows(9, seed=1)})["a", "0"]
    store.put({("b", "0"): rows(9, seed=2)})
    assert ("a", "0") not in store
    assert torch.equal(held, rows(9, seed=1))


def test_what_exceeds_the_budget_is_handed_back_and_evicts_nothing(store: EmbeddingStore) -> None:
    store.put({("a", "0"): rows(2)})
    large = rows(11)
    assert store.put({("large", "0"): large})["large", "0"] is large
    assert ("a", "0") in store and ("large", "0") not in store


def test_one_put_larger_than_the_budget_gives_every_tensor(store: EmbeddingStore) -> None:
    items = {(str(index), "0"): rows(4, seed=index) for index in range(5)}
    shared = store.put(items)
    for key, tensor in items.items():
        assert torch.equal(shared[key], tensor)
    assert len(store) == len(files(store)) == 2


def test_versions_are_different_keys_and_old_ones_can_be_dropped(store: EmbeddingStore) -> None:
    store.put({("a", "1"): rows(2, seed=1), ("a", "2"): rows(2, seed=2)})
    store.drop_other_versions(["2"])
    assert store.get(("a", "1")) is None
    kept = store.get(("a", "2"))
    assert kept is not None and torch.equal(kept, rows(2, seed=2))
    assert store.bytes == 2 * ROW and len(files(store)) == 1


def test_eviction_equals_a_model_of_it_whoever_owns_the_files(tmp_path: Path) -> None:
    """Random accesses: an owner, a rank that only maps, and an obvious reference keep the same
    books."""
    owner = EmbeddingStore(20 * ROW, torch.bfloat16, tmp_path)
    mapper = EmbeddingStore(20 * ROW, torch.bfloat16, tmp_path, owner=False)
    reference: OrderedDict[str, int] = OrderedDict()
    choose = random.Random(5)
    for _ in range(300):
        name = choose.choice("abcdefgh")
        size = 2 + ord(name) % 5
        got = owner.get((name, "0"))
        mapped = mapper.get((name, "0"))
        assert (got is not None) == (mapped is not None) == (name in reference)
        if got is None:
            owner.put({(name, "0"): rows(size, seed=ord(name))})
            meta = torch.empty(size, 8, dtype=torch.bfloat16, device="meta")
            mapped = mapper.put({(name, "0"): meta})[name, "0"]
            while sum(reference.values()) + size > 20:
                reference.popitem(last=False)
            reference[name] = size
        reference.move_to_end(name)
        assert mapped is not None and torch.equal(mapped, rows(size, seed=ord(name)))
        assert owner.bytes == mapper.bytes == sum(reference.values()) * ROW
    assert owner.evictions == mapper.evictions > 0
    mapper.close()
    assert len(files(owner)) == len(reference)
    owner.close()
    assert not tmp_path.exists()


SECOND_PROCESS = """
import sys, torch
from pathlib import Path
from megatron_longrl.media.embedding_store import EmbeddingStore
store = EmbeddingStore(1 << 20, torch.bfloat16, Path(sys.argv[1]), owner=False)
meta = torch.empty(6, 8, dtype=torch.bfloat16, device="meta")
shared = store.put({("video", "0"): meta})["video", "0"]
shared[2, 3] = 42.0
print(shared.float().sum().item())
"""


def test_a_second_process_maps_the_same_memory(tmp_path: Path) -> None:
    store = EmbeddingStore(1 << 20, torch.bfloat16, tmp_path)
    shared = store.put({("video", "0"): rows(6)})["video", "0"]
    seen = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shared[2, 3] == 42.0  # written over there
    assert float(seen.stdout) == pytest.approx(shared.float().sum().item())
    assert len(files(store)) == 1, "a rank that does not own the store removed its files"
    store.close()


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from pathlib import Path
from megatron_longrl.media import embedding_store
store = embedding_store.EmbeddingStore(1 << 20, torch.bfloat16, Path(sys.argv[1]))
store.put({("whole", "0"): torch.ones(6, 8, dtype=torch.bfloat16)})
embedding_store.os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
store.put({("half", "0"): torch.ones(6, 8, dtype=torch.bfloat16)})
"""


def test_a_crash_leaves_no_half_entry_and_the_next_job_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / f"{embedding_store._PREFIX}dead"
    folder.mkdir()
    crash = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(folder)], check=False)
    assert crash.returncode == -signal.SIGKILL
    assert len(list(folder.glob("*.bin"))) == 1, "only the whole entry has a final name"
    alive = tmp_path / f"{embedding_store._PREFIX}alive"
    alive.mkdir()
    store = EmbeddingStore(1 << 20, torch.bfloat16, alive)
    (tmp_path / "someone-elses").mkdir()
    _remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "someone-elses"]
    store.close()


def test_stores_of_living_jobs_cost_no_descriptors(tmp_path: Path) -> None:
    alive = tmp_path / f"{embedding_store._PREFIX}alive"
    alive.mkdir()
    store = EmbeddingStore(1 << 20, torch.bfloat16, alive)
    before = os.listdir("/proc/self/fd")
    _remove_leftovers(tmp_path)
    assert os.listdir("/proc/self/fd") == before
    store.close()


def test_a_failed_write_is_a_user_error_and_changes_nothing(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put({("a", "0"): rows(2)})

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device.*--embedding-store-gib"):
        store.put({("b", "0"): rows(2)})
    assert store.bytes == 2 * ROW and ("b", "0") not in store
    assert len(list(store.directory.iterdir())) == 2  # the entry and the lock
    assert store.get(("a", "0")) is not None
