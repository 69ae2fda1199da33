"""Rows of a data set: LongVideo-Reason's format, as JSON lines or as one JSON array."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_longrl.errors import UserError

DATA_TYPES = ("video", "image", "text")
KNOWN_FIELDS = (
    *("problem_id", "problem", "answer", "reasoning", "videos", "images"),
    *("problem_type", "data_type"),
)
"""Fields of a data row that have a meaning here."""


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Attributes:
        problem_id: the row's own id.
        problem: question, for multiple choice followed by its options.
        answer: letter or text, without ``<answer>`` tags.
        reasoning: chain of thought without ``<think>`` tags; may be empty.
        videos: files of the videos, in the order in which the model sees them; none where
            ``data_type`` is "text".
        problem_type: kind of question, "general" when the data does not say.
        data_type: "video", "image" or "text".
        source: "file:line" for messages ("file[k]" in a JSON array).
        uid: unique and stable id by which everything of this row is looked up. It does not
            depend on the folder that the data is in, so that the same data gives the same run
            everywhere.
        images: files of the images, which the model sees before the videos.
        metadata: fields of the row that are none of these.
    """

    problem_id: str
    problem: str
    answer: str
    reasoning: str
    videos: tuple[Path, ...]
    problem_type: str
    data_type: str
    source: str
    uid: str = ""
    images: tuple[Path, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def media(self) -> list[tuple[Path, bool]]:
        """All files in the order in which the model sees them, and whether each is an image."""
        return [(path, True) for path in self.images] + [(path, False) for path in self.videos]

    def __post_init__(self) -> None:
        if not self.uid:
            object.__setattr__(self, "uid", f"{self.problem_id}@{Path(self.source).name}")


def load_rows(paths: Sequence[str | Path], folder_file: str = "train.jsonl") -> list[Row]:
    """Read all rows of the given files, in order.

    Args:
        paths: ``.jsonl`` files, ``.json`` files with one array, or folders. A folder stands for
            its ``folder_file``, or for its only ``.jsonl`` file.
        folder_file: name looked for in folders.

    Returns:
        The rows; video paths are resolved against the folder of the file that names them.

    Raises:
        UserError: a file is missing or empty, or a row is malformed, with file and line.
    """
    if not paths:
        raise UserError("no data: give at least one file or folder with --train-data-path")
    rows: list[Row] = []
    names: Counter[str] = Counter()
    for path in (_data_file(Path(p), folder_file) for p in paths):
        names[path.name] += 1
        # The same file name in two folders must not give the same uids.
        copy = f"#{names[path.name]}" if names[path.name] > 1 else ""
        found = [
            _parse_row(entry, path, place, f"{path.name}{copy}{place}")
            for place, entry in _entries(path)
        ]
        if not found:
            raise UserError(f"{path}: the data set has no rows; write one JSON object per line")
        rows.extend(found)
    return rows


def _data_file(path: Path, folder_file: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such data file or folder; check --train-data-path")
    if (path / folder_file).is_file():
        return path / folder_file
    candidates = sorted(path.glob("*.jsonl"))
    if len(candidates) == 1:
        return candidates[0]
    raise UserError(
        f"{path}: the folder holds no {folder_file} and {len(candidates)} .jsonl files; "
        "name one of its files"
    )


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, parsed entry) of a file; places are ":line" or "[index]"."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error.reason})") from None
    if path.suffix == ".json":
        try:
            array = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
        if not isinstance(array, list):
            raise UserError(f"{path}: a .json data file must hold one array of rows")
        yield from ((f"[{index}]", entry) for index, entry in enumerate(array))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f":{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not a JSON object ({error.msg}); correct or remove the line"
                ) from None


def _parse_row(entry: Any, path: Path, place: str, uid_place: str) -> Row:
    where = f"{path}{place}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: a row must be a JSON object; correct or remove it")

    def text(key: str, default: str | None = None) -> str:
        value = entry.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "missing" if value is None else "not a text"
            raise UserError(f"{where}: field '{key}' is {kind}; correct or remove the row")
        return str(value)

    problem_id = text("problem_id")
    data_type = text("data_type", "video")
    if data_type not in DATA_TYPES:
        raise UserError(
            f"{where}: data_type '{data_type}' is not known; use one of {', '.join(DATA_TYPES)}"
        )
    problem = text("problem")
    answer = _strip_tags(text("answer"), "answer")
    for key, value in (("problem", problem), ("answer", answer)):
        if not value.strip():
            raise UserError(f"{where}: field '{key}' is empty; correct or remove the row")
    videos, images = _media_paths(entry, data_type, path, where)
    return Row(
        problem_id=problem_id,
        problem=problem,
        answer=answer,
        reasoning=_strip_tags(text("reasoning", ""), "think"),
        videos=videos,
        problem_type=text("problem_type", "general"),
        data_type=data_type,
        source=where,
        uid=f"{problem_id}@{uid_place}",
        images=images,
        metadata={key: value for key, value in entry.items() if key not in KNOWN_FIELDS},
    )


def _media_paths(
    entry: dict[str, Any], data_type: str, path: Path, where: str
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Videos and images of a row, which must have those that its ``data_type`` tells of."""
    found = {kind: _paths(entry.get(kind), kind, path, where) for kind in ("videos", "images")}
    if data_type == "text":
        for kind, names in found.items():
            if names:
                raise UserError(f"{where}: data_type is 'text' but the row has a '{kind}' field")
    elif not found[f"{data_type}s"]:
        raise UserError(
            f"{where}: the row has no '{data_type}s' field; add the path of its {data_type}, "
            "or set data_type to 'text'"
        )
    return found["videos"], found["images"]


def _paths(value: Any, kind: str, path: Path, where: str) -> tuple[Path, ...]:
    names = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(name, str) and name for name in names):
        one = kind.removesuffix("s")
        raise UserError(f"{where}: field '{kind}' must be the path of a {one}, or a list of paths")
    return tuple(path.parent / name for name in names)


def _strip_tags(text: str, tag: str) -> str:
    """The inside of ``<tag>…</tag>`` where the whole text is wrapped in it."""
    match = re.fullmatch(rf"\s*<{tag}>(.*)</{tag}>\s*", text, flags=re.DOTALL)
    return (match.group(1) if match else text).strip()
