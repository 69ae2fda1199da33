"""The folders of distributed checkpoints: names, the tracker file, and which of them are complete.

Megatron's layout: ``<directory>/iter_0000010/`` and
``<directory>/latest_checkpointed_iteration.txt``. Inside an iteration folder, beside
megatron-core's files (``.metadata``, ``*.distcp``, ``common.pt``, ``metadata.json``):

* ``longrl_state.json``: the configuration, the position of the run, and sizes and checksums of all
  other files;
* ``rng/``: states of the random generators, a safetensors file per rank;
* ``tokenizer/``: the files of the tokenizer, so that the folder can be exported alone;
* ``unused_weights.safetensors``: tensors of an imported model that never run here;
* ``hf_files/``: settings of an imported model that an export takes over.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import hexdigits
from typing import Any

from megatron_longrl.atomic_file import atomic_write_text, sync_folder, sync_tree
from megatron_longrl.checkpoint.architecture import check_saved_fields
from megatron_longrl.checkpoint.checksums import DIGITS, check_contents, checksums
from megatron_longrl.errors import UserError
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.processes.leftovers import remove_once
from megatron_longrl.regular_file import check_regular, read_regular

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"
STATE_FILE = "longrl_state.json"
RNG_FOLDER = "rng"
TOKENIZER_FOLDER = "tokenizer"
UNUSED_WEIGHTS = "unused_weights.safetensors"
HF_FILES = "hf_files"
RELEASE = "release"
"""Folder of converted weights, which belong to no iteration."""

_DIGITS = 12
"""Largest number of digits of an iteration."""
_TRACKER_BYTES = 100
_LARGEST_FILE = 1 << 60
_SMALL_BYTES = 16 << 20
"""A file with no more than this is read when a checkpoint is judged; that takes milliseconds."""
_FULL_BYTES = 1 << 20
"""A disk with less than this is full, when a write has failed."""

CORE_FILES = (".metadata", "common.pt", "metadata.json")
"""Files without which megatron-core cannot load a checkpoint."""


def iteration_folder(directory: str | Path, iteration: int | str) -> Path:
    """``iter_0000010`` of iteration 10, or the folder of a release."""
    name = iteration if isinstance(iteration, str) else f"iter_{iteration:07d}"
    return Path(directory) / name


def iteration_folders(directory: Path) -> dict[int, Path]:
    """The folders of all iterations, complete or not, newest first."""
    numbers = ((path.name.removeprefix("iter_"), path) for path in directory.glob("iter_*"))
    found = {
        int(number): path
        for number, path in numbers
        if number.isascii() and number.isdigit() and len(number) <= _DIGITS
    }
    return dict(sorted(found.items(), reverse=True))


def partial_folder(final: Path) -> Path:
    """Return the folder in which a checkpoint is written before it is complete."""
    return final.with_name(f".{final.name}.partial")


def candidates(directory: str | Path) -> list[Path]:
    """Checkpoints to try, best first: the tracker's, then older ones, newest first.

    Args:
        directory: the one given to ``--save``, or one iteration's folder itself.
    """
    directory = Path(directory)
    if (directory / STATE_FILE).exists():
        return [directory]
    found = iteration_folders(directory)
    tracked = _tracked(directory)
    if tracked is None:
        return list(found.values())
    if isinstance(tracked, str):
        return [directory / tracked]
    older = [folder for iteration, folder in found.items() if iteration < tracked]
    return [iteration_folder(directory, tracked), *older]


def _tracked(directory: Path) -> int | str | None:
    """Read the tracker file; None where there is none, or it is broken, with a warning."""
    path = directory / TRACKER
    if not path.is_file():
        return None
    try:
        text = read_regular(path, _TRACKER_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        text = "no text"
    if text == RELEASE:
        return RELEASE
    if text.isdigit() and len(text) <= _DIGITS:
        return int(text)
    logger.warning("%s says no iteration: looking for the newest folder", path)
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The state file of a complete checkpoint.

    Raises:
        UserError: naming the file, and the field, that is missing or broken.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    try:
        settings = Settings.of(folder / STATE_FILE)
    except UserError as error:
        raise UserError(f"{folder / STATE_FILE} is missing or broken: {error}") from None
    check_state(settings)
    for place in (folder, folder / RNG_FOLDER, folder / TOKENIZER_FOLDER, folder / HF_FILES):
        if place.is_dir():
            check_regular(place)
    sizes = settings.section("files").values
    for name in (*CORE_FILES, *sizes):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if name in sizes and path.stat().st_size != sizes[name]:
            raise UserError(f"{path} has {path.stat().st_size} bytes instead of {sizes[name]}")
    return dict(settings.values)


def is_complete(folder: Path) -> bool:
    """Whether all files of a checkpoint are there, with their sizes, and the small ones as they
    were written. Without the small ones, such as the list of tensors, nothing can be read; the
    shards, which may have hundreds of GB, are not read."""
    try:
        state = read_state(folder)
        small = {
            name: digits
            for name, digits in (state.get("checksums") or {}).items()
            if state["files"][name] <= _SMALL_BYTES
        }
        check_contents(folder, small)
    except UserError:
        return False
    return True


def check_state(settings: Settings) -> None:
    """Check the fields of a state file.

    Raises:
        UserError: naming the file and the field.
    """
    for name in ("config", "layout", "state", "files"):
        if not isinstance(settings.values.get(name), dict):
            raise settings.wrong(name, "no JSON object")
    for name in ("iteration", "scheduler_steps"):
        settings.whole(name, -1, least=0)
    optimizers = settings.values.get("optimizers")
    if not isinstance(optimizers, list) or not all(isinstance(o, str) for o in optimizers):
        raise settings.wrong("optimizers", "no list of names")
    files = settings.section("files")
    for name in files.values:
        files.whole(name, 0, least=0, most=_LARGEST_FILE)
        path = Path(name)
        if not name.isprintable() or path.is_absolute() or ".." in path.parts:
            raise settings.wrong("files", "no list of files of this folder")
    found = settings.section("checksums").values
    if found and found.keys() != files.values.keys():
        raise settings.wrong("checksums", "no list of the files")
    if not all(_is_checksum(value) for value in found.values()):
        raise settings.wrong("checksums", f"no list of {DIGITS} hexadecimal digits each")
    check_saved_fields(settings.section("config"))


def _is_checksum(value: object) -> bool:
    return isinstance(value, str) and len(value) == DIGITS and not set(value) - set(hexdigits)


def check_share(folder: Path, state: Mapping[str, Any], rank: int, size: int) -> int:
    """Compare the checksums of one rank's share of a checkpoint's files.

    Returns:
        How many files were compared. None are, with a warning of rank 0, where an older version has
        saved the checkpoint without checksums.

    Raises:
        UserError: naming the first file that has changed.
    """
    expected: dict[str, str] = state.get("checksums") or {}
    if not expected and rank == 0:
        logger.warning(
            "%s was saved without checksums, by an older version: damage of its files may go "
            "unnoticed",
            folder,
        )
    names = sorted(expected)[rank::size]
    check_contents(folder, {name: expected[name] for name in names})
    return len(names)


def find_state(directory: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Folder and state of the newest complete checkpoint; None where there is none, also where the
    folder does not exist."""
    for folder in candidates(directory):
        try:
            return folder, read_state(folder)
        except UserError:
            continue
    return None


def newest_complete(directory: str | Path) -> tuple[Path, dict[str, Any]]:
    """Folder and state of the first of :func:`candidates` that is complete.

    A broken one is skipped with a warning.

    Raises:
        UserError: there is none.
    """
    problems = []
    for folder in candidates(directory):
        try:
            return folder, read_state(folder)
        except UserError as error:
            logger.warning("skipping a broken checkpoint: %s", error)
            problems.append(str(error))
    reason = f": {problems[0]}" if problems else ""
    raise UserError(f"{directory} holds no checkpoint{reason}")


def no_space(directory: Path) -> str | None:
    """Return the reason why nothing can be written into a folder, if its disk is full.

    torch's writers do not say so: their errors name positions within a file.
    """
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return None
    if free >= _FULL_BYTES:
        return None
    return f"the disk of {directory} is full, {free / 2**20:.1f} MiB are free"


def remove_leftovers(directory: Path) -> None:
    """Remove what interrupted saves have left; only the one process that owns the directory may
    call it.

    A checkpoint that was about to be replaced by another one of the same step gets its name back
    where the other one did not get it.
    """
    for path in directory.glob(".*.replaced"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        if final.exists() or not path.is_dir():
            remove_once(path, ignore_errors=True)
        else:
            os.replace(path, final)
    for pattern in (".*.partial", "rollouts/.*.partial", ".iter_*.removed"):
        for path in directory.glob(pattern):
            remove_once(path, ignore_errors=True)


def publish(
    final: Path, state: dict[str, Any], tracked: int | str, known: Mapping[str, str] | None = None
) -> None:
    """Make a written checkpoint the newest one: list its files, rename it, then point to it.

    A crash at any point, also of the machine, leaves the checkpoint before it as the newest.

    Args:
        final: the name of the folder; its files are in :func:`partial_folder`.
        state: contents of the state file, without the list of files.
        tracked: the text of the tracker file.
        known: checksums of some of the files, by their names, from those who have written them.
    """
    aside = partial_folder(final)
    sizes = {
        str(path.relative_to(aside)): path.stat().st_size
        for path in sorted(aside.rglob("*"))
        if path.is_file()
    }
    found = dict(known or {})
    found |= checksums(aside, [name for name in sizes if name not in found])
    contents = {**state, "files": sizes, "checksums": {name: found[name] for name in sizes}}
    sync_tree(aside)
    atomic_write_text(aside / STATE_FILE, json.dumps(contents, indent=1) + "\n", durable=True)
    replaced = final.with_name(f".{final.name}.replaced")
    remove_once(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(aside, final)
    sync_folder(final.parent)
    atomic_write_text(final.parent / TRACKER, f"{tracked}\n", durable=True)
    remove_once(replaced, ignore_errors=True)
