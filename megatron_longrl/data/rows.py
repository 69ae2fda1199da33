"""Rows of a data set: LongVideo-Reason's format, as JSON lines or as one JSON array."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from megatron_longrl.config.data_sources import sources
from megatron_longrl.data.cell_files import CellFiles
from megatron_longrl.data.columns import parse_columns
from megatron_longrl.data.messages import MESSAGES, Exchange, exchanges
from megatron_longrl.data.row_entries import BrokenEntry, FileEntries, OpenedFile
from megatron_longrl.data.row_files import data_files, open_entries
from megatron_longrl.data.row_tags import clean_answer, clean_reasoning
from megatron_longrl.errors import DataError
from megatron_longrl.media.modality import MODALITIES, MediaFile, Modality, all_modalities

AUDIO_IN_VIDEO = "audio_in_video"
"""Whether the sound of a row's videos belongs to them."""
OTHER_NAMES = {
    "problem": ("question", "prompt"),
    "answer": ("solution", "ground_truth"),
    AUDIO_IN_VIDEO: ("use_audio_in_video",),
}
"""Names that other projects (EasyR1, verl, LLaVA, transformers) give to fields; for those of media
see :class:`~megatron_longrl.media.modality.Modality`. One counts where the row does not have the
field by its own name; otherwise it is metadata."""
_PROBLEMS, _ANSWERS = ((name, *OTHER_NAMES[name]) for name in ("problem", "answer"))
TEXT_FIELDS = ("problem_id", "problem", "answer", "reasoning", "problem_type", "data_type")
"""Fields of a data row that have a meaning here, without those of media."""

_DEEPEST = 64
"""Levels of lists and objects in a row: far from where Python's own limits make libraries fail."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_FILE_URL = "file://"


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Attributes:
        problem_id: the row's own id; the number of its line where it has none.
        problem: question, for multiple choice followed by its options.
        answer: letter or text, without ``<answer>`` tags.
        reasoning: chain of thought without ``<think>`` tags; may be empty.
        videos: files of the videos, in the order in which the model sees them; none where
            ``data_type`` is "text".
        problem_type: kind of question, "general" when the data does not say.
        data_type: "video", "image", "text" or the name of another modality.
        source: "file:line" for messages ("file[k]" in a JSON array).
        uid: unique and stable id by which everything of this row is looked up. It does not
            depend on the folder that the data is in, so that the same data gives the same run
            everywhere.
        images: files of the images, which the model sees before the videos.
        other_media: files of other modalities.
        audio_in_video: whether the sound of the videos belongs to them; None leaves it to
            ``--audio-in-video``.
        system: system prompt of the row, in place of ``--system-prompt``.
        history: earlier turns of a conversation, (role, text) from a user's to an assistant's.
        response: the assistant's turn in the data, which supervised fine-tuning trains in place of
            reasoning and answer.
        part: number of the path of ``--train-data-path`` that the row is from.
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
    other_media: tuple[MediaFile, ...] = ()
    audio_in_video: bool | None = None
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    response: str | None = None
    part: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def media(self) -> list[MediaFile]:
        """All files in the order of their modalities, which is that in which the model reads media
        without placeholders."""
        files = [
            *(MediaFile(path, "image") for path in self.images),
            *(MediaFile(path, "video") for path in self.videos),
            *self.other_media,
        ]
        order = MODALITIES.names()
        return sorted(files, key=lambda file: order.index(file.modality))

    def __post_init__(self) -> None:
        if not self.uid:
            object.__setattr__(self, "uid", f"{self.problem_id}@{Path(self.source).name}")


@dataclass(frozen=True)
class RowProblem:
    """The reason why a row cannot be used."""

    source: str
    """ "file:line" ("file[k]" in a JSON array)."""
    reason: str
    """The mistake and, where it is not obvious, the remedy."""
    media: str | None = None
    """The file that is to blame, where it is one."""

    def __str__(self) -> str:
        # Names of files may hold line breaks and controls of a terminal.
        line = " ".join(f"{self.source}: {self.reason}".split())
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)

    @property
    def location(self) -> tuple[str, int]:
        """File, and number of the line from 1 (of the row, in a JSON array)."""
        match = re.fullmatch(r"(.*?)(?::(\d+)|\[(\d+)\])", self.source, flags=re.DOTALL)
        if match is None:
            return self.source, 0
        return match[1], int(match[2]) if match[2] else int(match[3]) + 1


class RowError(DataError):
    """One row that cannot be used: a line with its file, its number and the reason."""

    def __init__(self, source: str, reason: str, media: str | None = None) -> None:
        self.problem = RowProblem(source, " ".join(reason.split()), media)
        super().__init__(str(self.problem))

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, str | None]]:
        return RowError, (self.problem.source, self.problem.reason, self.problem.media)


def load_rows(
    paths: Sequence[str | Path],
    folder_file: str = "train.jsonl",
    *,
    problems: list[RowProblem] | None = None,
    columns: Sequence[str] = (),
    every_turn: bool = False,
    answers: bool = True,
) -> list[Row]:
    """Read all rows of the given files, in order.

    Args:
        paths: ``.jsonl`` files, ``.json`` files with one array, tables, or folders, perhaps with
            weights. A folder stands for its ``folder_file``, its only ``.jsonl`` file, or its
            table.
        folder_file: name looked for in folders.
        problems: gets the problems of rows that are left out; without it the first such row is an
            error.
        columns: ``--data-columns``.
        every_turn: whether each of the assistant's turns of a conversation is a separate row, for
            supervised fine-tuning; otherwise the last one is.
        answers: whether each row needs an answer; it is the problem itself where it has none.

    Returns:
        The rows; video paths are resolved against the folder of the file that names them.

    Raises:
        DataError: a file is missing, empty or of another format.
        RowError: a row is malformed, with file and line, and ``problems`` is not given.
    """
    entries = index_rows(
        paths, folder_file, columns=columns, every_turn=every_turn, answers=answers
    )
    rows: list[Row] = []
    for number in range(len(entries)):
        try:
            rows += entries.rows_of(number)
        except RowError as error:
            if problems is None:
                raise
            problems.append(error.problem)
    return rows


def index_rows(
    paths: Sequence[str | Path],
    folder_file: str = "train.jsonl",
    *,
    columns: Sequence[str] = (),
    every_turn: bool = False,
    answers: bool = True,
    cells: CellFiles | None = None,
) -> FileEntries[Row]:
    """Find where the rows of the given files are, without reading them.

    Args:
        paths, folder_file, columns, every_turn, answers: see :func:`load_rows`.
        cells: gets the files of media that lie within tables; by default in a folder of the user's.

    Raises:
        DataError: a file is missing, empty or of another format.
    """
    if not paths:
        raise DataError("no data: give at least one file or folder with --train-data-path")
    names: Counter[str] = Counter()
    reader = _RowReader(parse_columns(columns, _other_names()), every_turn, answers)
    given = [Path(path) for path in sources([str(path) for path in paths])[0]]
    files = []
    for part, path in (
        (n, file) for n, p in enumerate(given) for file in data_files(p, folder_file)
    ):
        names[path.name] += 1
        # The same file name in two folders must not give the same uids.
        copy = f"#{names[path.name]}" if names[path.name] > 1 else ""
        entries = open_entries(path, cells)
        if not len(entries):
            raise DataError(f"{path}: the data set has no rows; write one JSON object per line")
        files.append(OpenedFile(path, part, f"{path.name}{copy}", entries))

    def parse(file: OpenedFile, place: str, entry: Any) -> list[Row]:
        rows = reader.read(entry, file.path, place, f"{file.name}{place}")
        return [replace(row, part=file.part) for row in rows]

    return FileEntries(files, parse)


class LoadRows(Protocol):
    """Reads rows as :func:`load_rows` does."""

    def __call__(
        self,
        paths: Sequence[str | Path],
        folder_file: str = ...,
        *,
        problems: list[RowProblem] | None = ...,
    ) -> list[Row]:
        """See :func:`load_rows`."""


def row_of(entry: Mapping[str, Any], file: Path, place: str) -> Row:
    """The row that an object makes, as if it stood in a file.

    Args:
        file: against whose folder paths of media are resolved.
        place: the place of the object in the file, such as ``[3]``.

    Raises:
        RowError: it is malformed.
    """
    checked = _object(dict(entry), f"{file}{place}")
    return _parse_row(checked, file, place, f"{file.name}{place}")


def _answered(entry: dict[str, Any]) -> dict[str, Any]:
    """A row of a prompt, whose answer is drawn and need not be written."""
    if any(entry.get(name) is not None for name in _ANSWERS):
        return entry
    problem = next((entry[n] for n in _PROBLEMS if entry.get(n) is not None), None)
    return {**entry, "answer": problem}


def _other_names() -> dict[str, tuple[str, ...]]:
    """Every field, and the other names that it may have."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys((*TEXT_FIELDS, AUDIO_IN_VIDEO), ())
    of_media = {modality.field: modality.other_fields for modality in all_modalities()}
    return {**found, **OTHER_NAMES, **of_media, MESSAGES[0]: MESSAGES[1:]}


@dataclass(frozen=True)
class _RowReader:
    """Makes rows of entries."""

    columns: Mapping[str, str]
    every_turn: bool
    answers: bool

    def read(self, entry: Any, path: Path, location: str, uid_place: str) -> list[Row]:
        """The rows of an entry: one, or one for each of the assistant's turns."""
        where = f"{path}{location}"
        entry = self._by_columns(_object(entry, where), where)
        if not self.answers:
            entry = _answered(entry)
        messages = next((entry[name] for name in MESSAGES if entry.get(name) is not None), None)
        if messages is None:
            return [_parse_row(entry, path, location, uid_place)]
        rest = {name: value for name, value in entry.items() if name not in MESSAGES}
        try:
            found = exchanges(messages, _files_of(rest))
        except ValueError as error:
            raise RowError(where, f"{error}; correct or remove the row") from None
        named = {name for modality in all_modalities() for name in modality.other_fields}
        without_media = {name: value for name, value in rest.items() if name not in named}
        chosen = found if self.every_turn else found[-1:]
        rows = []
        for number, exchange in enumerate(chosen):
            turn = "" if exchange is found[-1] else f"/turn {number + 1}"
            of_row = {**without_media, **_fields_of(exchange, rest)}
            row = _parse_row(of_row, path, location, f"{uid_place}{turn}")
            rows.append(
                replace(
                    row,
                    system=exchange.system,
                    history=exchange.history,
                    response=exchange.response,
                )
            )
        return rows

    def _by_columns(self, entry: dict[str, Any], where: str) -> dict[str, Any]:
        if not self.columns:
            return entry
        moved = dict(entry)
        for field_, column in self.columns.items():
            if column in entry:
                moved[field_] = entry[column]
                if column != field_:
                    moved.pop(column, None)
            elif field_ in ("problem", "answer") and not _has(entry, field_):
                have = ", ".join(sorted(entry)) or "none"
                raise RowError(
                    where,
                    f"there is no column '{column}' (--data-columns {field_}={column}); the row's "
                    f"columns are {have}",
                )
        return moved


def _has(entry: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a field of another name, which rows of another source use."""
    return any(entry.get(own) is not None for own in (name, *OTHER_NAMES[name], *MESSAGES))


def _files_of(entry: dict[str, Any]) -> dict[str, list[str]]:
    """Files of a row's own fields by the names of their modalities."""
    named, _ = _by_own_names(entry)
    found = {}
    for modality in all_modalities():
        value = named.get(modality.field)
        found[modality.name] = value if isinstance(value, list) else [value] if value else []
    return found


def _fields_of(exchange: Exchange, rest: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that an exchange fills."""
    fields: dict[str, Any] = {"problem": exchange.problem}
    for modality in all_modalities():
        fields[modality.field] = exchange.media.get(modality.name, [])
    if exchange.response is not None and rest.get("answer") is None:
        fields["answer"] = exchange.response
    return fields


def _object(entry: Any, where: str) -> dict[str, Any]:
    if isinstance(entry, BrokenEntry):
        raise RowError(where, f"{entry.reason}; correct or remove it")
    if not isinstance(entry, dict):
        raise RowError(where, "a row must be a JSON object; correct or remove it")
    _check_values(entry, where)
    return entry


def _parse_row(entry: dict[str, Any], path: Path, location: str, uid_place: str) -> Row:
    where = f"{path}{location}"
    entry, used = _by_own_names(entry)

    def text(key: str, default: str | None = None) -> str:
        value = entry.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "missing" if value is None else "not a text"
            raise RowError(where, f"field '{key}' is {kind}; correct or remove the row")
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(where, f"field '{key}' is no finite number; correct or remove the row")
        return str(value)

    problem_id = text("problem_id", location.strip(":[]"))
    media = _media_paths(entry, path, where)
    problem = text("problem")
    try:
        answer = clean_answer(text("answer"))
        reasoning = clean_reasoning(text("reasoning", ""))
    except ValueError as error:
        raise RowError(where, f"{error}; correct or remove the row") from None
    for key, value in (("problem", problem), ("answer", answer)):
        if not value.strip():
            raise RowError(where, f"field '{key}' is empty; correct or remove the row")
    return Row(
        problem_id=problem_id,
        problem=problem,
        answer=answer,
        reasoning=reasoning,
        videos=media["video"],
        problem_type=text("problem_type", "general"),
        data_type=_data_type(entry, media, where),
        source=where,
        uid=f"{problem_id}@{uid_place}",
        images=media["image"],
        other_media=tuple(
            MediaFile(file, name)
            for name, files in media.items()
            if name not in ("video", "image")
            for file in files
        ),
        audio_in_video=_audio_in_video(entry, where),
        metadata={k: v for k, v in entry.items() if k not in (*_known_fields(), *used)},
    )


def _by_own_names(entry: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The row with its fields by the names that they have here, and the other names it had."""
    result, used = dict(entry), set()
    of_media = {modality.field: modality.other_fields for modality in all_modalities()}
    for name, others in {**OTHER_NAMES, **of_media}.items():
        if result.get(name) is not None:
            continue
        other = next((other for other in others if entry.get(other) is not None), None)
        if other is not None:
            result[name] = entry[other]
            used.add(other)
    return result, used


def _check_values(entry: dict[str, Any], where: str) -> None:
    """Refuse what libraries fail at later: half characters, and nesting without end."""
    left: list[tuple[Any, int]] = [(entry, 1)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise RowError(where, f"the row is nested more than {_DEEPEST} levels deep; remove it")
        if isinstance(value, str):
            if not _is_text(value):
                raise RowError(
                    where,
                    "a text holds half a character (a lone UTF-16 surrogate); correct or remove it",
                )
        elif isinstance(value, dict):
            left += [(key, depth) for key in value]
            left += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            left += [(item, depth + 1) for item in value]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _known_fields() -> tuple[str, ...]:
    return (*TEXT_FIELDS, AUDIO_IN_VIDEO, *(modality.field for modality in all_modalities()))


def _audio_in_video(entry: dict[str, Any], where: str) -> bool | None:
    value = entry.get(AUDIO_IN_VIDEO)
    if value is not None and not isinstance(value, bool):
        raise RowError(where, f"field '{AUDIO_IN_VIDEO}' is neither true nor false; correct it")
    return value


def _data_type(entry: dict[str, Any], media: Mapping[str, Sequence[Path]], where: str) -> str:
    """Return the data type that the row names, or that of its media."""
    given = entry.get("data_type")
    order = sorted(media, key=lambda name: name not in ("video", "image"))
    known = ("video", "image", "text", *order[2:])
    if given is None:
        return next((name for name in known if media.get(name)), "text")
    if given not in known:
        raise RowError(where, f"data_type {given!r} is not known; use one of {', '.join(known)}")
    if given == "text":
        for modality in all_modalities():
            if media[modality.name]:
                raise RowError(
                    where, f"data_type is 'text' but the row has a '{modality.field}' field"
                )
    elif not media[given]:
        field_ = MODALITIES.find(given).field
        raise RowError(
            where,
            f"the row has no '{field_}' field; add the path of its {given}, or set data_type to "
            "'text'",
        )
    return str(given)


def _media_paths(entry: dict[str, Any], path: Path, where: str) -> dict[str, tuple[Path, ...]]:
    """The files of a row by the names of all modalities."""
    return {
        modality.name: _paths(entry.get(modality.field), modality, path, where)
        for modality in all_modalities()
    }


def _paths(value: Any, modality: Modality, path: Path, where: str) -> tuple[Path, ...]:
    names = value if isinstance(value, list) else [] if value in (None, "") else [value]
    kind, one = modality.field, modality.name
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise RowError(where, f"field '{kind}' must be the path of a {one}, or a list of paths")
        if "\0" in name:
            raise RowError(where, f"field '{kind}' holds a path with a NUL character; correct it")
        if _URL.match(name) and not name.startswith(_FILE_URL):
            raise RowError(
                where, f"field '{kind}' holds an address; download the {one} and give its path"
            )
    return tuple(path.parent / name.removeprefix(_FILE_URL) for name in names)


def number_in(row: Row, name: str) -> float:
    """The number in a field of the row's metadata.

    Raises:
        RowError: there is none.
    """
    value = row.metadata.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError(row.source, f"field '{name}' is no number, but --difficulty-field names it")
    return number
