"""Damaged files of checkpoints: each is read, or refused in one line that names the checkpoint.

One file of a tiny checkpoint is damaged at a time, and the whole of it is read, as ``longrl
convert`` does. ``.metadata`` and the shards of megatron-core are left alone: other tests damage
them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import shutil
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrl.errors import UserError
from tests.fuzz.isolated import EXCEPTION, READ, REFUSED, WRONG, Outcome

SECONDS = 20.0
"""That reading may take."""
GIB = 4
"""That it may take of memory."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2.5, -0.5, 1e-300, 1e308, 10**9, 10**18, 10**400),
    *(float("nan"), float("inf"), -float("inf"), "", "0", "32", "x" * 5000, "\ud800", "a\0b", "\n"),
    *([], [0], [1, 2, 3], [[]], ["x"], [None] * 5000, {}, {"a": 1}, {"": {}}, [{}]),
    *("qwen2", "qwen3", "llama", "vila", "llava_llama", "yarn", "llama3", "linear", "../x"),
)
"""What settings are replaced by."""

BYTES = (
    *(b"", b"\xef\xbb\xbf{}", b"\xff\xfe", b"{", b"[]", b"null", b"7", bytes(64), b"\x00"),
    *(b"{" * 100_000, b"[" * 100_000, b'{"a":' + b"9" * 6000 + b"}", b"\n", b"{}", b'{"a":1}x'),
)
"""What files are replaced by."""


@dataclass(frozen=True)
class Base:
    """A whole checkpoint and how it is read."""

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], None]


# ---- Damage ----


def damage(path: Path, draw: random.Random) -> str:
    """Change a file; what was done."""
    kind = draw.random()
    if kind < 0.05:
        return _no_file(path, draw)
    if kind < 0.15:
        path.write_bytes(draw.choice(BYTES))
        return "replaced"
    if kind < 0.3:
        return _bytes(path, draw)
    if path.suffix == ".safetensors":
        return _header(path, draw)
    if path.suffix == ".json":
        return _settings(path, draw)
    return _bytes(path, draw)


def _no_file(path: Path, draw: random.Random) -> str:
    path.unlink()
    what = draw.choice(("nothing", "folder", "pipe", "link to nothing", "link to itself"))
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what.startswith("link"):
        path.symlink_to(path.name if what == "link to itself" else "gone")
    return what


def _bytes(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    what = draw.choice(("bits", "cut", "zeros", "insert", "twice"))
    start = draw.randrange(min(len(data), 4000) + 1)
    if what == "bits":
        for _ in range(draw.randint(1, 8)):
            if data:
                data[draw.randrange(min(len(data), 4000))] ^= 1 << draw.randrange(8)
    elif what == "cut":
        del data[start:]
    elif what == "zeros":
        length = draw.randint(1, 200)
        data[start : start + length] = bytes(len(data[start : start + length]))
    elif what == "insert":
        data[start:start] = draw.randbytes(draw.randint(1, 20))
    else:
        data *= 2
    path.write_bytes(data)
    return what


def _settings(path: Path, draw: random.Random) -> str:
    settings = json.loads(path.read_text())
    done = [_change(settings, draw) for _ in range(draw.randint(1, 3))]
    path.write_text(json.dumps(settings))
    return ", ".join(done)


def _change(settings: Any, draw: random.Random) -> str:
    """Replace, drop or rename one value somewhere in an object."""
    inner, where = settings, []
    while True:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        if not keys:
            return "nothing"
        key = draw.choice(list(keys))
        where.append(str(key))
        deeper = isinstance(inner[key], dict | list) and inner[key]
        if not deeper or draw.random() < 0.2:
            break
        inner = inner[key]
    kind = draw.random()
    if kind < 0.15:
        del inner[key]
        return f"without {'.'.join(where)}"
    if kind < 0.2 and isinstance(inner, dict):
        inner[f"{key}x"] = inner.pop(key)
        return f"renamed {'.'.join(where)}"
    if kind < 0.4 and type(inner[key]) is int:
        inner[key] = draw.choice((inner[key] + 1, inner[key] * 2, inner[key] // 2, -inner[key]))
    else:
        inner[key] = copy.deepcopy(draw.choice(VALUES))
    return f"{'.'.join(where)} = {str(inner[key])[:30]!r}"


def _header(path: Path, draw: random.Random) -> str:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    if draw.random() < 0.2:
        other = draw.choice((0, 1, length - 1, length + 1, 2 * length, 1 << 40, (1 << 64) - 1))
        path.write_bytes(struct.pack("<Q", other) + data[8:])
        return f"header of {other}"
    header = json.loads(data[8 : 8 + length])
    done = _change(header, draw)
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])
    return f"header: {done}"


# ---- Checkpoints ----


def read_hugging_face(folder: Path) -> None:
    """As ``longrl convert`` reads it."""
    from megatron_longrl.cli.conversion.hugging_face import read_folder
    from megatron_longrl.cli.conversion.plugins import tensor_names
    from megatron_longrl.conversion.hf_writer import HfFolderWriter

    source = read_folder(argparse.Namespace(load_dir=folder))
    with HfFolderWriter(
        folder.with_name("export"), source.config, unused=source.unused, files=source.files
    ) as writer:
        for name in tensor_names(source.config):
            writer.add(name, source.read(name))


def read_megatron(folder: Path) -> None:
    """As ``longrl convert`` reads it."""
    from megatron_longrl.cli.conversion.loader_megatron import load_checkpoint
    from megatron_longrl.cli.conversion.plugins import tensor_names

    source = load_checkpoint(argparse.Namespace(load_dir=folder, iteration=None, use_ema=False))
    for name in tensor_names(source.config):
        source.read(name)


def read_adapter(folder: Path) -> None:
    """As ``longrl convert --loader peft`` reads it, over the model that it belongs to."""
    from megatron_longrl.cli.conversion.loader_peft import load_checkpoint
    from megatron_longrl.cli.conversion.plugins import tensor_names

    base = (folder / "base").read_text()
    source = load_checkpoint(argparse.Namespace(load_dir=folder, base_dir=Path(base)))
    for name in tensor_names(source.config):
        source.read(name)


def make_bases(folder: Path) -> list[Base]:
    """Whole checkpoints of all kinds."""
    import torch
    from safetensors.torch import load_file, save_file

    from megatron_longrl.cli.convert import main as convert
    from tests.qwen_vl_files import write_processor
    from tests.tiny_qwen_vl import PATCH, hugging_face
    from tests.unit.checkpoint.test_convert import tiny_text
    from tests.unit.checkpoint.vila_files import write_vila

    weights = "model.safetensors"
    bases = []
    for family in ("qwen2", "llama"):
        tiny_text(folder / family, family, torch.bfloat16)
        bases.append(Base(folder / family, ("config.json", weights), read_hugging_face))
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "base").write_text(str(folder / "qwen2"))
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": False}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    stem = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    pair = {f"{stem}A.weight": torch.ones(2, 32), f"{stem}B.weight": torch.ones(48, 2)}
    save_file(pair, adapter / "adapter_model.safetensors")
    both = ("adapter_config.json", "adapter_model.safetensors")
    bases.append(Base(adapter, both, read_adapter))
    shards = folder / "shards"
    shutil.copytree(folder / "qwen2", shards)
    tensors = sorted(load_file(shards / weights).items())
    (shards / weights).unlink()
    names = {}
    for number in (0, 1):
        file = f"model-{number}.safetensors"
        part = dict(tensors[number::2])
        save_file(part, shards / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(part, file))
    index = "model.safetensors.index.json"
    (shards / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    bases.append(Base(shards, (index, "model-0.safetensors", "config.json"), read_hugging_face))
    for family in ("qwen2_5_vl", "qwen3_vl"):
        place = folder / family
        hugging_face(family).save_pretrained(place)
        write_processor(place, family, PATCH, {"min_pixels": 256, "max_pixels": 1600})
        nested = json.loads((place / "preprocessor_config.json").read_text())
        nested = {"image_processor": nested, "video_processor": nested}
        (place / "processor_config.json").write_text(json.dumps(nested))
        processors = ("processor_config.json", "preprocessor_config.json")
        bases.append(Base(place, ("config.json", *processors, weights), read_hugging_face))
    write_vila(folder / "vila", True, torch.float32)
    parts = ("llm", "vision_tower", "mm_projector")
    files = [f"{part}/{name}" for part in parts for name in ("config.json", weights)]
    files += ["config.json", "vision_tower/preprocessor_config.json"]
    bases.append(Base(folder / "vila", tuple(files), read_hugging_face))
    place = folder / "megatron"
    flags = ["--loader", "hf", "--saver", "megatron", "--load-dir", str(folder / "vila")]
    assert convert([*flags, "--save-dir", str(place)]) == 0
    state, tracker = "release/longrl_state.json", "latest_checkpointed_iteration.txt"
    unused = "release/unused_weights.safetensors"
    return [*bases, Base(place, (state, state, tracker, unused), read_megatron)]


# ---- The run ----


class Checkpoints:
    """Damages checkpoints and reads them.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        self._place = folder / "damaged"
        with _silent():
            self._bases = make_bases(folder)

    def __call__(self, given: tuple[int, int]) -> Outcome:
        """What came of the checkpoint of a seed and a number."""
        seed, number = given
        base, draw = self._bases[number % len(self._bases)], random.Random(f"{seed} {number}")
        folder = self._place / "checkpoint"
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(base.folder, folder)
        file = draw.choice(base.files)
        done = f"{base.folder.name}/{file}: {damage(folder / file, draw)}"
        try:
            with _silent():
                base.read(folder)
        except UserError as error:
            line = str(error)
            is_right = str(folder) in line and line.isprintable() and len(line) < 2000
            return Outcome(REFUSED if is_right else WRONG, f"{done}; {line[:500]!r}")
        except Exception:
            return Outcome(EXCEPTION, f"{done}\n{traceback.format_exc()}")
        return Outcome(READ, done)


@contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def limit_memory() -> None:
    """This process may want GIB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (GIB << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
