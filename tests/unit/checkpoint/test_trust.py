"""Checkpoints of strangers, and checkpoints that a disk has damaged: nothing of them is run, and no
changed bit is missed."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_longrl.checkpoint import folder as layout
from megatron_longrl.checkpoint import metadata_file
from megatron_longrl.checkpoint.checksums import check_contents, checksums
from megatron_longrl.checkpoint.dist_reader import StoredParameters
from megatron_longrl.checkpoint.loading import load_checkpoint, load_weights
from megatron_longrl.checkpoint.metadata_file import check_core_files, read_metadata
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.cli.conversion.contents import contents_of
from megatron_longrl.cli.given import read_given
from megatron_longrl.cli.inspect import main as inspect
from megatron_longrl.cli.load import checkpoint_fields
from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.errors import UserError
from megatron_longrl.processes.daemon_thread import in_daemon_thread
from tests.runner.tiers import full_only
from tests.tiny_vila import TINY

SHARD = "__0_0.distcp"


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def saved(groups, tmp_path_factory) -> Path:
    """A directory with one whole checkpoint."""
    from megatron_longrl.training.model import build_model

    directory = tmp_path_factory.mktemp("saved")
    config = Config.of(TINY)
    model = build_model(config, groups, train=True)
    save_checkpoint(
        directory,
        1,
        modules=model.modules,
        optimizers=model.optimizers,
        scheduler=model.scheduler,
        state={},
        groups=groups,
        config=config,
    )
    return directory


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the checkpoint to damage."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run" / "iter_0000001"


def reseal(folder: Path) -> None:
    """As someone does who has changed files on purpose: sizes and checksums are right."""
    path = folder / layout.STATE_FILE
    state = json.loads(path.read_text())
    names = [name for name in state["files"] if (folder / name).is_file()]
    state["files"] = {name: (folder / name).stat().st_size for name in names}
    state["checksums"] = checksums(folder, names)
    path.write_text(json.dumps(state))


def open_by_all(folder: Path, groups, convert) -> list[str]:
    """What every way to open a checkpoint says of it."""
    from megatron_longrl.training.model import build_model

    config = Config.of(TINY)
    model = build_model(config, groups, train=True)
    ways = {"modules": model.modules, "optimizers": model.optimizers, "groups": groups}
    told = []
    for read in (
        lambda: load_checkpoint(
            folder.parent,
            scheduler=model.scheduler,
            config=config,
            checkpoint=config.checkpoint,
            **ways,
        ),
        lambda: load_weights(folder.parent, config=config, **ways),
        lambda: contents_of(folder.parent),
        lambda: StoredParameters(folder, check_core_files(folder)),
    ):
        try:
            read()
            told.append("")
        except UserError as error:
            told.append(str(error))
    flags = ["--loader", "megatron", "--saver", "hf_vila", "--load-dir", folder.parent]
    status, _, line = convert(*flags, "--save-dir", folder.parent / "hf")
    told.append(line if status else "")
    return told


def bare_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def inside(path: Path, bomb: Bomb) -> None:
    """Within the file's own objects."""
    if path.name == ".metadata":
        metadata = pickle.loads(path.read_bytes())
        metadata.planner_data = {"x": bomb}
        path.write_bytes(pickle.dumps(metadata))
    elif zipfile.is_zipfile(path):
        buffer = io.BytesIO()
        torch.save({"x": bomb}, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        bare_pickle(path, bomb)


@pytest.mark.parametrize("plant", [bare_pickle, inside])
@pytest.mark.parametrize("name", [".metadata", "common.pt", SHARD, "rng/rank_00000.safetensors"])
def test_nothing_in_a_checkpoint_is_run(name, plant, folder, groups, convert, tmp_path):
    fired = tmp_path / "fired"
    assert (folder / name).is_file(), sorted(folder.rglob("*"))
    plant(folder / name, Bomb(fired))
    reseal(folder)
    told = open_by_all(folder, groups, convert)
    assert not fired.exists()
    assert any(told), "a checkpoint without its files was read"
    # The bomb is a real one.
    pickle.loads(pickle.dumps(Bomb(fired)))
    assert fired.exists()


def test_a_list_that_is_replaced_after_the_check_is_not_read(folder, groups, tmp_path, monkeypatch):
    from megatron_longrl.training.model import build_model

    fired = tmp_path / "fired"

    def checked_and_replaced(*args) -> None:
        check_share(*args)
        bare_pickle(folder / ".metadata", Bomb(fired))

    check_share = layout.check_share
    monkeypatch.setattr(layout, "check_share", checked_and_replaced)
    config = Config.of(TINY)
    model = build_model(config, groups, train=True)
    loaded = load_checkpoint(
        folder.parent,
        modules=model.modules,
        optimizers=model.optimizers,
        scheduler=model.scheduler,
        groups=groups,
        config=config,
        checkpoint=config.checkpoint,
    )
    assert loaded is not None and not fired.exists()


def test_a_pickle_in_place_of_a_tensor_is_not_read(folder, groups, convert, tmp_path):
    fired = tmp_path / "fired"
    buffer = io.BytesIO()
    torch.save(Bomb(fired), buffer)
    (folder / "__0_7.distcp").write_bytes(buffer.getvalue())
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for name in [name for name in metadata.state_dict_metadata if name.endswith("weight")]:
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        for index in [index for index in metadata.storage_data if index.fqn == name]:
            del metadata.storage_data[index]
        place = _StorageInfo("__0_7.distcp", 0, buffer.tell())
        metadata.storage_data[MetadataIndex(name)] = place
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(folder)
    told = open_by_all(folder, groups, convert)
    assert not fired.exists()
    assert all(told)
    assert "is a pickle where a tensor has to be" in told[3]


@pytest.mark.parametrize("name", ["hf_files/notes.txt", "tokenizer/merges.txt", "tokenizer"])
def test_what_a_link_leads_to_is_not_exported(name, folder, convert, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "private" / ("key" if path.suffix else ""))
    flags = ["--loader", "megatron", "--saver", "hf_vila", "--load-dir", folder.parent]
    status, _, error = convert(*flags, "--save-dir", tmp_path / "hf")
    assert status == 2 and f"error: {path} is a link, which no checkpoint has" in error
    assert not (tmp_path / "hf").exists()


def change_place(**changes: object):
    def change(metadata) -> None:
        index = next(iter(metadata.storage_data))
        place = metadata.storage_data[index]
        fields = {name: getattr(place, name) for name in ("relative_path", "offset", "length")}
        metadata.storage_data[index] = _StorageInfo(**{**fields, **changes})

    return change


def change_entry(**changes: object):
    def change(metadata) -> None:
        entries = metadata.state_dict_metadata
        entry = next(value for key, value in entries.items() if key.endswith("weight"))
        for name, value in changes.items():
            setattr(entry, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_place(relative_path="../../secret.distcp"), "the place of .* is none"),
        (change_place(relative_path="/etc/passwd"), "the place of .* is none"),
        (change_place(relative_path="__0_9.distcp"), "__0_9.distcp is missing"),
        (change_place(offset=-1), "the place of .* is none"),
        (change_place(offset="0"), "the place of .* is none"),
        (change_place(length=1 << 50), "lies beyond the end of __0_0.distcp"),
        (change_entry(size=torch.Size([1 << 41])), "the entry of .* is no tensor's"),
        (change_entry(size=7), "the entry of .* is no tensor's"),
        (change_entry(chunks=[None]), "the entry of .* is no tensor's"),
        (change_entry(properties=None), "the entry of .* is no tensor's"),
        (lambda metadata: setattr(metadata, "storage_data", None), "it holds no list of tensors"),
        (lambda metadata: metadata.state_dict_metadata.update({3: 4}), "a name is no text"),
    ],
)
def test_a_list_of_tensors_that_cannot_be_is_named(change, reason, folder):
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=rf"\.metadata is damaged: .*{reason}"):
        read_metadata(folder)


@pytest.mark.parametrize(
    "value",
    [
        print,
        getattr,
        pickle.loads,
        torch.load,
        torch.nn.Linear,
        Path("/").__class__.unlink,
    ],
)
def test_functions_that_no_list_of_tensors_needs_are_named(value, folder):
    (folder / ".metadata").write_bytes(pickle.dumps({"a": value}))
    with pytest.raises(UserError, match=r"\.metadata asks for .*, which no checkpoint needs"):
        read_metadata(folder)


def test_a_list_of_tensors_that_changes_a_class_is_not_read(folder):
    # BUILD, with a class in place of an object, sets attributes of the class.
    change = (
        b"\x80\x02cpathlib\nPosixPath\nN}X\x07\x00\x00\x00is_fileccollections\nOrderedDict\ns\x86b."
    )
    (folder / ".metadata").write_bytes(change)
    before = type(folder).is_file
    try:
        with pytest.raises(UserError, match=r"damaged: .*changes a value that has no parts"):
            read_metadata(folder)
        assert type(folder).is_file is before
    finally:
        if "is_file" in vars(type(folder)):
            del type(folder).is_file


def doubled(levels: int = 60) -> bytes:
    """A dictionary whose key is a tuple that holds a tuple twice, and so on."""
    key: tuple[Any, ...] = ()
    for _ in range(levels):
        key = (key, key)
    return b"\x80\x02}" + pickle.dumps(key, 2)[2:-1] + b"K\x01s."


def nested(levels: int = 1_000_000) -> bytes:
    """A key that is a tuple in a tuple, and so on."""
    return b"\x80\x02})" + b"\x85" * levels + b"K\x01s."


def filled_later(levels: int = 60) -> bytes:
    """Objects that get their parts when others hold them already, the last one as a key."""
    made = b"".join(
        b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\n)\x81q" + bytes([n])
        for n in range(levels)
    )
    filled = b"".join(
        b"h%c}(X\x03\x00\x00\x00fqnh%cX\x06\x00\x00\x00offseth%cub" % (n, n + 1, n + 1)
        for n in range(levels - 1)
    )
    return b"\x80\x02](" + made + filled + b"e."


BUSY = {
    "doubled": doubled(),
    "nested": nested(),
    "filled later": filled_later(),
    "a large table": b"\x80\x02}r\xff\xff\xff\x0f.",
    "equal hashes": b"\x80\x02}("
    + b"".join(
        pickle.dumps(((1 << 61) - 1) * number, 2)[2:-1] + b"N" for number in range(1, 20_000)
    )
    + b"u.",
    "many numbers": b"\x80\x02}("
    + b"".join(pickle.dumps(number << 20, 2)[2:-1] + b"N" for number in range(1, 20_000))
    + b"u.",
    "tuples as keys": b"\x80\x02}(" + b"".join(b"K%c\x85N" % n for n in range(9)) + b"u.",
    "a long text": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"a.",
    "a long frame": b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"}.",
}
"""Short pickles that take for ever, or all memory, to be made or to be used."""


@pytest.mark.parametrize("name", BUSY)
def test_a_short_list_of_tensors_that_keeps_busy_is_not_made(name, folder):
    (folder / ".metadata").write_bytes(BUSY[name])
    told = in_daemon_thread(lambda: assert_damaged(folder), "reader")
    told.result(timeout=60)


def assert_damaged(folder: Path, reason: str = "(ValueError|UnpicklingError)") -> None:
    with pytest.raises(UserError, match=rf"\.metadata is damaged: .*{reason}"):
        read_metadata(folder)


def offsets_of_one_hash(count: int) -> list[tuple[int, int]]:
    """Pairs of numbers below 2^60 whose tuples have one hash (xxHash, as CPython computes it)."""
    first, second, fifth = 11400714785074694791, 14029467366897019727, 2870177450012600261
    inverse = pow(second, -1, 1 << 64)
    found: list[tuple[int, int]] = []
    number = 0
    while len(found) < count:
        number += 1
        lane = (fifth + number * second) % (1 << 64)
        state = ((lane << 31 | lane >> 33) * first) % (1 << 64)
        other = -state * inverse % (1 << 64)
        if other < 1 << 60:
            found.append((number, other))
    return found


def without_memo(value: object) -> bytes:
    """A pickle that refers to nothing within itself, so that parts of it can be replaced."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 2)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


@pytest.mark.parametrize(
    "largest",
    full_only(
        "tests/unit/checkpoint/test_trust.py::test_keys_of_one_hash_are_read_fast_and_refused",
        [1 << 40, 1 << 60],
        [1 << 60],
    ),
)
def test_keys_of_one_hash_are_read_fast_and_refused(largest, folder, monkeypatch):
    monkeypatch.setattr(metadata_file, "_LARGEST", largest)
    assert len({hash(torch.Size(offset)) for offset in offsets_of_one_hash(100)}) == 1
    metadata = read_metadata(folder)
    index, place = next(iter(metadata.storage_data.items()))
    metadata.storage_data = "THE PLACES"
    # As bytes, because the dictionary would take too long to make here.
    keys = (MetadataIndex(index.fqn, offset) for offset in offsets_of_one_hash(20_000))
    items = b"".join(without_memo(part)[2:-1] for key in keys for part in (key, place))
    before, text, after = without_memo(metadata).partition(without_memo("THE PLACES")[2:-1])
    assert text
    (folder / ".metadata").write_bytes(before + b"}(" + items + b"u" + after)
    told = in_daemon_thread(lambda: assert_damaged(folder, "one hash|at no offset"), "reader")
    told.result(timeout=60)


def with_values(value: bytes, path: Path) -> None:
    """Replace the list of values in a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, value if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("name", ["doubled", "a large table"])
def test_common_values_that_keep_busy_are_not_made(name, folder, groups, convert):
    with_values(BUSY[name], folder / "common.pt")
    reseal(folder)
    # Listing does not need the file.
    loaded, weights, _, parameters, converted = open_by_all(folder, groups, convert)
    assert "could be loaded" in loaded and "could be loaded" in weights
    assert "common.pt is damaged" in parameters and "common.pt is damaged" in converted


def packed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def of_values(make: Callable[[], object]) -> Callable[[Path], None]:
    return lambda path: torch.save({"x": make()}, path)


def larger_than_stored(path: Path) -> None:
    torch.save({"x": torch.zeros(64)}, path)
    with zipfile.ZipFile(path) as archive:
        found = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    assert found.count(b"K@") == 2  # of the storage, and of the tensor
    with_values(found.replace(b"K@", b"J\x00\x00\x00\x40"), path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (packed, "it is compressed"),
        (larger_than_stored, r"a tensor has 256 bytes where it says 1073741824 x 4"),
        (of_values(lambda: bytearray(9)), "it asks for .* bytearray, which no checkpoint needs"),
        (of_values(lambda: np.zeros(3)), "it asks for numpy"),
        (lambda path: path.write_bytes(b"\x80\x02}."), "it is no archive of torch"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "it is no archive of torch"),
    ],
)
def test_a_file_of_torch_that_is_larger_than_it_looks_is_not_read(change, reason, folder):
    change(folder / "common.pt")
    with pytest.raises(UserError, match=rf"common\.pt is damaged: {reason}"):
        check_core_files(folder)


def test_tensors_among_common_values_are_read(folder):
    torch.save({"a": torch.zeros(7), "b": torch.ones(2, 3).bfloat16().t()}, folder / "common.pt")
    check_core_files(folder)


def test_a_shard_that_says_it_is_larger_is_not_read(folder):
    metadata = read_metadata(folder)
    tensors = {
        index: place
        for index, place in metadata.storage_data.items()
        if index.fqn.endswith("weight")
    }
    index, place = max(tensors.items(), key=lambda item: item[1].length)
    data = bytearray((folder / SHARD).read_bytes())
    part = bytes(data[place.offset : place.offset + place.length])
    with zipfile.ZipFile(io.BytesIO(part)) as archive:
        values = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    at = place.offset + part.index(values)
    changed = values.replace(b"FloatStorage", b"ComplexFloat", 1)
    assert len(changed) == len(values) and changed != values
    data[at : at + len(values)] = changed
    (folder / SHARD).write_bytes(data)
    with pytest.raises(UserError, match=rf"{SHARD} is damaged: {re.escape(index.fqn)}: "):
        check_core_files(folder)
    # Another rank looks through it.
    check_core_files(folder, 1, 2)


def a_weight(metadata) -> TensorStorageMetadata:
    entries = metadata.state_dict_metadata.items()
    return next(entry for name, entry in entries if name.endswith("weight"))


def declare_more(metadata) -> None:
    entry = a_weight(metadata)
    entry.size = torch.Size([entry.size[0] << 20, *entry.size[1:]])


def declare_more_in_a_part(metadata) -> None:
    entry = a_weight(metadata)
    chunk = entry.chunks[0]
    entry.size = torch.Size([chunk.sizes[0] << 20, *chunk.sizes[1:]])
    entry.chunks[0] = ChunkStorageMetadata(chunk.offsets, entry.size)


def store_all_in_one_place(metadata) -> None:
    longest = max(metadata.storage_data.values(), key=lambda place: place.length)
    for index in metadata.storage_data:
        metadata.storage_data[index] = longest


def test_sizes_that_the_configuration_tells_are_compared_before_a_model_is_made(folder):
    path = folder / layout.STATE_FILE
    state = json.loads(path.read_text())
    given = read_given(["--load", str(folder.parent), "--train-data-path", "x"], "rl")
    assert checkpoint_fields(given)[0] == folder
    state["config"]["padded_vocab_size"] = state["config"]["vocab_size"] = 1 << 23
    path.write_text(json.dumps(state))
    given = read_given(["--load", str(folder.parent), "--train-data-path", "x"], "rl")
    with pytest.raises(UserError, match=r"longrl_state\.json: .* does not fit the tensor"):
        checkpoint_fields(given)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (declare_more, "the parts of .* are not the whole"),
        (declare_more_in_a_part, r"has \d+ bytes, and fewer are stored"),
        (store_all_in_one_place, "what lies in .* is larger than the file"),
    ],
)
def test_a_tensor_is_as_large_as_what_is_stored_of_it(change, reason, folder):
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=rf"\.metadata is damaged: .*{reason}"):
        read_metadata(folder)


def test_another_format_is_not_looked_for(folder, groups, convert):
    text = '{"sharded_backend": "zarr", "sharded_backend_version": 1}'
    (folder / "metadata.json").write_text(text)
    reseal(folder)
    told = open_by_all(folder, groups, convert)
    assert "names another format than torch_dist" in told[4]
    assert told[0] and told[1]


def test_a_changed_bit_is_found_wherever_it_is(saved):
    source = saved / "iter_0000001"
    expected = layout.read_state(source)["checksums"]
    assert set(expected) == set(layout.read_state(source)["files"])
    draw = random.Random(7)
    data = {name: (source / name).read_bytes() for name in expected}
    names = sorted(data, key=lambda name: -len(data[name]))
    copy = saved.parent / "flipped"
    shutil.copytree(source, copy)
    for turn in range(1000):
        # Most of them in the shards, which are most of the bytes.
        name = names[0] if turn % 4 else draw.choice(names)
        bit = draw.randrange(8 * len(data[name]))
        with (copy / name).open("r+b") as file:
            file.seek(bit // 8)
            file.write(bytes([data[name][bit // 8] ^ 1 << bit % 8]))
        with pytest.raises(UserError, match=f"{name} has changed since it was written"):
            check_contents(copy, {name: expected[name]})
        with (copy / name).open("r+b") as file:
            file.seek(bit // 8)
            file.write(data[name][bit // 8 : bit // 8 + 1])
    check_contents(copy, expected)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_every_program_finds_a_changed_bit(folder, groups, convert, capsys):
    flip(folder / SHARD)
    told = open_by_all(folder, groups, convert)
    changed = f"{folder / SHARD} has changed since it was written"
    # Listing reads no weights.
    assert "could be loaded" in told[0] and "could be loaded" in told[1] and told[2] == ""
    assert changed in told[4]
    assert inspect([str(folder.parent), "--verify"]) == 2
    assert f"error: {changed}" in capsys.readouterr().err


def test_inspect_says_that_all_is_as_it_was_written(folder, capsys):
    assert inspect([str(folder.parent), "--verify"]) == 0
    assert "files, " in (told := capsys.readouterr().out) and "are as they were written" in told
    state = json.loads((folder / layout.STATE_FILE).read_text())
    assert int(told.split(": ")[1].split(" files")[0]) == len(state["files"])


def test_an_older_checkpoint_without_checksums_is_read_with_a_warning(
    folder, groups, convert, caplog, capsys
):
    path = folder / layout.STATE_FILE
    state = json.loads(path.read_text())
    del state["checksums"]
    path.write_text(json.dumps(state))
    assert not any(open_by_all(folder, groups, convert))
    assert "was saved without checksums, by an older version" in caplog.text
    assert inspect([str(folder.parent), "--verify"]) == 2
    assert "was saved without checksums" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", [7, {"a": "b"}, {".metadata": "x" * 32}, {".metadata": None}], ids=repr
)
def test_checksums_that_are_none_are_named(value, folder):
    path = folder / layout.STATE_FILE
    state = json.loads(path.read_text())
    state["checksums"] = {**state["checksums"], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"longrl_state.json: checksums"):
        layout.read_state(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_nothing_in_a_hugging_face_folder_is_run(name, vila_folder, convert, tmp_path, capsys):
    source, fired = vila_folder(), tmp_path / "fired"
    for path in (source / "llm").glob("*.safetensors"):
        path.unlink()
    (source / "llm" / name).write_bytes(pickle.dumps(Bomb(fired)))
    for part in ("", "llm"):
        # Code that transformers runs for those who trust it.
        (source / part / "modeling_own.py").write_text(f"open({str(fired)!r}, 'w')")
        config = json.loads((source / part / "config.json").read_text())
        config["auto_map"] = {
            "AutoConfig": "modeling_own.X",
            "AutoModelForCausalLM": "modeling_own.X",
        }
        (source / part / "config.json").write_text(json.dumps(config))
    flags = ["--loader", "hf_vila", "--saver", "megatron", "--load-dir", source]
    status, _, error = convert(*flags, "--save-dir", tmp_path / "megatron")
    assert status == 2 and "error: " in error
    assert inspect([str(source)]) == 2
    with pytest.raises(UserError):
        HfFolder(source).tensors("llm")
    assert not fired.exists()
