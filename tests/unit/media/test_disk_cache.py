"""The folder of embeddings: what it gives back, what it drops, and who may share it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.media import disk_cache as embedding_disk
from megatron_longrl.media.disk_cache import EmbeddingDisk, EmbeddingKey
from megatron_longrl.media.embedding_store import EmbeddingStore

KEY: EmbeddingKey = ("video", "weights")
COUNT = 2000
FILE = COUNT * 8 * 2 + 4096
"""What the budget counts for :func:`rows`: the data, and a header of any length."""


def rows(seed: int = 0, count: int = COUNT, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[count, 8]."""
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def read(disk: EmbeddingDisk, key: EmbeddingKey = KEY, like: Tensor | None = None) -> Tensor | None:
    target = torch.full_like(rows() if like is None else like, 7.0)
    return target if disk.read(key, target) else None


@pytest.fixture
def disk(tmp_path: Path) -> EmbeddingDisk:
    return EmbeddingDisk(tmp_path / "cache", 1 << 20)


def files(disk: EmbeddingDisk) -> list[Path]:
    return sorted(path for path in disk.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_every_bit_comes_back_in_another_process_too(
    disk: EmbeddingDisk, dtype: torch.dtype
) -> None:
    width = torch.int16 if dtype.itemsize == 2 else torch.int32
    bits = torch.arange(-3000, 3000, dtype=width).view(-1, 4)  # NaNs and denormals too
    assert disk.write({KEY: bits.view(dtype)}) == 1
    again = EmbeddingDisk(disk.folder, 1 << 20)
    found = read(again, like=bits.view(dtype))
    assert KEY in again and found is not None
    assert torch.equal(found.view(width), bits)
    # It is a file that safetensors itself reads.
    assert torch.equal(load_file(disk.path(KEY))["embeddings"].view(width), bits)


def test_a_key_is_all_of_it(disk: EmbeddingDisk) -> None:
    disk.write({("video", "1"): rows(1), ("video", "2"): rows(2), ("other", "1"): rows(3)})
    for key, seed in ((("video", "1"), 1), (("video", "2"), 2), (("other", "1"), 3)):
        found = read(disk, key)
        assert found is not None and torch.equal(found, rows(seed))
    assert read(disk, ("other", "2")) is None and ("other", "2") not in disk


def test_what_is_there_is_not_written_again(disk: EmbeddingDisk) -> None:
    disk.write({KEY: rows()})
    before = disk.path(KEY).stat().st_ino
    assert disk.write({KEY: rows()}) == 0
    assert disk.path(KEY).stat().st_ino == before


def age(disk: EmbeddingDisk, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(disk.path((name, "0")), (then, then))


def test_the_least_recently_used_leave_first(tmp_path: Path) -> None:
    disk = EmbeddingDisk(tmp_path, 3 * FILE)
    disk.write({(name, "0"): rows() for name in "abc"})
    for seconds, name in enumerate("cba", start=1):
        age(disk, name, 100 * seconds)
    assert read(disk, ("a", "0")) is not None, "which is a use"
    disk.write({("d", "0"): rows()})
    assert {name for name in "abcd" if (name, "0") in disk} == {"a", "c", "d"}
    disk.write({("c", "0"): rows()})  # is there already, which is a use, too
    age(disk, "a", 50)
    EmbeddingDisk(tmp_path, 2 * FILE).write({("e", "0"): rows()})
    assert {name for name in "abcde" if (name, "0") in disk} >= {"e"}
    assert ("a", "0") not in disk
    assert sum(path.stat().st_size for path in files(disk)) <= 2 * FILE


def test_the_folder_is_not_listed_for_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    true_list = EmbeddingDisk._list

    def counted(disk: EmbeddingDisk) -> object:
        listings.append(disk)
        return true_list(disk)

    monkeypatch.setattr(EmbeddingDisk, "_list", counted)
    monkeypatch.setattr(embedding_disk, "_LISTINGS_APART", 1e9)
    EmbeddingDisk(tmp_path, 3 * FILE).write({("z", "0"): rows()})
    disk = EmbeddingDisk(tmp_path, 3 * FILE)
    for name in "ab":
        disk.write({(name, "0"): rows()})
    disk.path(("z", "0")).unlink()  # as another job does
    for name in "cd":
        assert read(disk, ("a", "0")) is not None, "which is a use that no listing has seen"
        disk.write({(name, "0"): rows()})
    assert {name for name in "zabcd" if (name, "0") in disk} == {"a", "c", "d"}
    assert len(listings) == 2, "one for each that has written"
    assert disk.bytes == 3 * FILE


def test_what_exceeds_the_whole_budget_is_not_kept_and_evicts_nothing(tmp_path: Path) -> None:
    disk = EmbeddingDisk(tmp_path, 2 * FILE)
    disk.write({KEY: rows()})
    assert disk.write({("large", "0"): rows(count=10 * COUNT)}) == 0
    assert KEY in disk and len(files(disk)) == 1


def test_foreign_files_of_the_folder_stay(tmp_path: Path) -> None:
    for name in ("model.safetensors", "ab/model.safetensors", "ab/notes.part", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"0" * (1 << 17))
        os.utime(path, (1, 1))
    disk = EmbeddingDisk(tmp_path, 2 * FILE)
    disk.write({(name, "0"): rows() for name in "abc"})
    assert len(files(disk)) == 4 + 2


def spoilt(kind: str, disk: EmbeddingDisk) -> None:
    """Make the file of KEY something else."""
    path = disk.path(KEY)
    data = path.read_bytes()
    if kind == "cut in its data":
        path.write_bytes(data[:-1])
    elif kind == "cut in its header":
        path.write_bytes(data[:20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "zeros":
        path.write_bytes(bytes(len(data)))
    elif kind == "a flipped bit":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif kind == "another key's":
        disk.write({("other", "0"): rows(5)})
        path.write_bytes(disk.path(("other", "0")).read_bytes())
    elif kind == "of another shape":
        save_file({"embeddings": rows(count=3)}, path, {"identity": "1/video/weights"})
    elif kind == "another file of tensors":
        save_file({"weight": rows()}, path, {"identity": "1/video/weights"})
    elif kind == "without metadata":
        save_file({"embeddings": rows()}, path)
    elif kind == "metadata of another kind":
        header = json.dumps({"__metadata__": "none", "embeddings": {}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    elif kind == "brackets":
        path.write_bytes((4000).to_bytes(8, "little") + b"[" * 4000)
    else:
        assert kind == "text"
        path.write_text("what somebody noted here, longer than eight bytes")


@pytest.mark.parametrize(
    "kind",
    [
        "cut in its data",
        "cut in its header",
        "empty",
        "zeros",
        "a flipped bit",
        "another key's",
        "of another shape",
        "another file of tensors",
        "without metadata",
        "metadata of another kind",
        "brackets",
        "text",
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_dropped(
    disk: EmbeddingDisk, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    disk.write({KEY: rows()})
    spoilt(kind, disk)
    assert read(disk) is None
    assert "is dropped and encoded again" in caplog.text
    assert KEY not in disk, "or it would be tried for ever"
    disk.write({KEY: rows()})
    found = read(disk)
    assert found is not None and torch.equal(found, rows())


def test_a_folder_in_place_of_a_file(disk: EmbeddingDisk, caplog: pytest.LogCaptureFixture) -> None:
    disk.path(KEY).mkdir(parents=True)
    assert KEY not in disk and read(disk) is None
    disk.write({KEY: rows()})
    assert read(disk) is None


@pytest.mark.parametrize("place", ["file/cache", "file"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot keep embeddings in .*--embedding-cache-dir"):
        EmbeddingDisk(tmp_path / place, 1 << 20)


def test_a_folder_that_vanishes_is_no_error(
    disk: EmbeddingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.folder.rmdir()
    assert disk.write({KEY: rows(), ("other", "0"): rows()}) == 0
    assert KEY not in disk and read(disk) is None
    assert caplog.text.count("embeddings are not kept") == 1, "not for every video of a run"


@pytest.fixture
def small_files() -> Iterator[None]:
    """As on a full disk: no file grows beyond FILE bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_warning_and_leaves_nothing(
    disk: EmbeddingDisk, small_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert disk.write({KEY: rows(count=2 * COUNT), ("small", "0"): rows()}) == 1
    assert "embeddings are not kept" in caplog.text
    assert files(disk) == [disk.path(("small", "0"))]


def test_what_a_dead_job_was_writing_is_removed(
    disk: EmbeddingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long the first listing takes, the folder is listed again.
    monkeypatch.setattr(embedding_disk, "_LISTINGS_APART", 0.0)
    disk.write({KEY: rows()})
    stem, folder = disk.path(KEY).stem, disk.path(KEY).parent
    dead, alive = (folder / f"{stem}.{digit * 32}.part" for digit in "12")
    for path in (dead, alive):
        path.write_bytes(b"half")
    os.utime(dead, (time.time() - 2 * 3600,) * 2)
    disk.write({("other", "0"): rows()})
    assert not dead.exists() and alive.exists()


def test_a_name_is_given_to_what_is_whole(
    disk: EmbeddingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, seen = os.replace, list[tuple[bool, Tensor]]()

    def look(source: Path, target: Path) -> None:
        seen.append((target.exists(), load_file(source)["embeddings"]))
        replace(source, target)

    monkeypatch.setattr(embedding_disk.os, "replace", look)
    disk.write({KEY: rows()})
    ((was_there, whole),) = seen
    assert not was_there and torch.equal(whole, rows())


def test_those_who_share_the_folder_share_what_is_in_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    before = os.umask(0o077)
    try:
        disk = EmbeddingDisk(tmp_path, 1 << 20)
        disk.write({KEY: rows()})
    finally:
        os.umask(before)
    path = disk.path(KEY)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o664, 0o775)


def test_media_without_tokens(disk: EmbeddingDisk, tmp_path: Path) -> None:
    nothing = rows(count=0)
    assert disk.write({KEY: nothing}) == 1
    assert read(disk, like=nothing) is not None
    store = EmbeddingStore(1 << 20, torch.bfloat16, tmp_path, disk=disk)
    assert store.load({KEY: nothing.shape})[KEY].shape == nothing.shape
    store.close()


ANOTHER_JOB = """
import sys, torch
from pathlib import Path
from megatron_longrl.media.disk_cache import EmbeddingDisk
disk = EmbeddingDisk(Path(sys.argv[1]), int(sys.argv[2]))
for turn in range(60):
    seed = turn % 7
    tensor = torch.full((2000, 8), float(seed), dtype=torch.bfloat16)
    target = torch.empty_like(tensor)
    if disk.read((str(seed), "0"), target):
        assert torch.equal(target, tensor), (seed, target)
    else:
        disk.write({(str(seed), "0"): tensor})
"""


def test_jobs_that_write_and_evict_at_once(tmp_path: Path) -> None:
    """Of seven videos three fit: both evict what the other reads, and read nothing half-written."""
    budget = 3 * FILE
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", ANOTHER_JOB, str(tmp_path), str(budget)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for job in jobs:
        _, told = job.communicate(timeout=120)
        assert job.returncode == 0, told
        assert "dropped" not in told, told
    disk = EmbeddingDisk(tmp_path, budget)
    assert 0 < len(files(disk)) <= 6, "each may have written three since the other has looked"
    assert not list(tmp_path.rglob("*.part"))
