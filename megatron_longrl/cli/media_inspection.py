"""Media files of a data set looked into: several at a time, and not again after an interruption."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_longrl.errors import UserError
from megatron_longrl.media.content_hash import content_hash, identity
from megatron_longrl.media.foreign_errors import as_error_of
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modality import MODALITIES, MediaFile
from megatron_longrl.media.read_policy import ReadPolicy

_TOLD = ("frames", "seconds", "fps", "width", "height", "codec")
Key = tuple[str, int, int]
"""Path, size and time of modification, which tell whether a file is still the same."""


@dataclass
class Inspected:
    """The result for all files."""

    found: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """Each file that can be read, in the form of the JSON."""
    failed: dict[Path, str] = field(default_factory=dict)
    """The reasons why the others cannot be read."""


def inspect_media(
    media: Sequence[MediaFile],
    *,
    workers: int,
    reading: ReadPolicy,
    journal: Path | None = None,
    hashes: bool = False,
    told: Callable[[int, int], object] = lambda done, total: None,
) -> Inspected:
    """Look into files.

    Args:
        workers: files at a time.
        reading: the limits within which each is opened.
        journal: a file of what was found, by which an interrupted check goes on; it is kept.
        hashes: whether the content of files that have the size of another one is hashed.
        told: is called with the number of files that are done, and of all.
    """
    files = list({medium.path: medium for medium in media}.values())
    known = _read_journal(journal)
    result = Inspected()
    keys, failed = _keys(files)
    result.failed |= failed
    waiting = []
    for medium in files:
        key = keys.get(medium.path)
        if key in known:
            _keep(result, medium.path, known[key])
        elif key is not None:
            waiting.append(medium)
    done = len(files) - len(waiting)
    told(done, len(files))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = {pool.submit(_inspect, medium, reading): medium for medium in waiting}
        for future in as_completed(futures):
            path = futures[future].path
            answer = future.result()
            _keep(result, path, answer)
            if journal is not None:
                with journal.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": keys[path], **answer}) + "\n")
            done += 1
            told(done, len(files))
        if hashes:
            _hash(result, keys, pool)
    ordered = [medium.path for medium in files]
    result.found = {path: result.found[path] for path in ordered if path in result.found}
    return result


def _inspect(medium: MediaFile, reading: ReadPolicy) -> dict[str, Any]:
    inspect = MODALITIES.find(medium.modality).inspect
    try:
        info = reading.read(medium.path, partial(inspect, medium.path))
    except (MediaError, UserError) as error:
        return {"reason": " ".join(str(error).split())}
    return {"found": {name: info.get(name) for name in _TOLD}}


def _keep(result: Inspected, path: Path, answer: Mapping[str, Any]) -> None:
    if "reason" in answer:
        result.failed[path] = answer["reason"]
    else:
        result.found[path] = {"path": str(path), **answer["found"]}


def _keys(files: Sequence[MediaFile]) -> tuple[dict[Path, Key], dict[Path, str]]:
    """The key of each file; why it has none, where it cannot be looked up."""
    keys: dict[Path, Key] = {}
    failed: dict[Path, str] = {}
    for medium in files:
        try:
            with as_error_of(medium.path):
                path, size, modified = identity(medium.path)
            keys[medium.path] = (str(path), size, modified)
        except (MediaError, UserError) as error:
            failed[medium.path] = " ".join(str(error).split())
    return keys, failed


def _read_journal(journal: Path | None) -> dict[Key, dict[str, Any]]:
    known: dict[Key, dict[str, Any]] = {}
    if journal is None or not journal.is_file():
        return known
    text = journal.read_text(encoding="utf-8", errors="replace")
    if not text.endswith("\n"):  # a check was killed while it wrote the last line
        with journal.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            known[tuple(entry.pop("key"))] = entry
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # half a line
    return known


def _hash(result: Inspected, keys: Mapping[Path, Key], pool: ThreadPoolExecutor) -> None:
    """Add the SHA-256 of files that could be copies of each other."""
    sizes = Counter(keys[path][1] for path in result.found)
    twins = [path for path in result.found if sizes[keys[path][1]] > 1]
    for path, content in zip(twins, pool.map(content_hash, twins), strict=True):
        result.found[path]["content"] = content
    for path, known in result.found.items():
        known.setdefault("content", str(path))  # of a size of its own, so that nothing equals it
