"""Subtitles with their times, and those that belong to the frames that a model sees."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from megatron_longrl.errors import DataError

Subtitle = tuple[float, float, str]
"""Start and end in seconds, and the text."""

_TIME = r"(\d+):(\d+):(\d+)[,.](\d+)"
_TIMES = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"<[^>]*>")


def parse_srt(text: str) -> list[Subtitle]:
    """The subtitles of a file in SubRip's format, without the markup of fonts."""
    found = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").lstrip("\ufeff")):
        times = _TIMES.search(block)
        if times is None:
            continue
        numbers = [int(number) for number in times.groups()]
        start, end = (
            hours * 3600 + minutes * 60 + seconds + thousandths / 1000
            for hours, minutes, seconds, thousandths in (numbers[:4], numbers[4:])
        )
        lines = block[times.end() :].strip("\n").split("\n")
        spoken = " ".join(_MARKUP.sub("", line).strip() for line in lines).strip()
        if spoken:
            found.append((start, end, spoken))
    return found


def spoken_at(subtitles: Iterable[Sequence[object]], seconds: Sequence[float]) -> list[str]:
    """The texts that are shown at any of these times, each once, in their order."""
    shown = []
    for start, end, text in subtitles:
        if any(float(start) <= time < float(end) for time in seconds):  # type: ignore[arg-type]
            shown.append(str(text))
    return shown


class SubtitleFiles:
    """The ``.srt`` files of a benchmark: in a folder, or still in the zip that is published.

    Args:
        folder: the folder of the benchmark's files.
        name: the name of the folder of subtitles, and of the zip.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._archive = folder / f"{name}.zip"

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        return self._folder.is_dir() or self._archive.is_file()

    def of(self, video: str) -> list[Subtitle]:
        """The subtitles of a video, by its name without suffix; none where it has no file.

        Raises:
            DataError: the file cannot be read.
        """
        name = f"{video}.srt"
        try:
            if (self._folder / name).is_file():
                data = (self._folder / name).read_bytes()
            elif name in self._in_archive:
                with zipfile.ZipFile(self._archive) as archive:
                    data = archive.read(self._in_archive[name])
            else:
                return []
            return parse_srt(data.decode("utf-8-sig"))
        except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
            raise DataError(f"{name} of {self._archive.parent}: cannot be read ({error})") from None

    @cached_property
    def _in_archive(self) -> dict[str, str]:
        """Places in the archive by the name of the file."""
        return dict(self._members())

    def _members(self) -> Iterator[tuple[str, str]]:
        if not self._archive.is_file():
            return
        try:
            with zipfile.ZipFile(self._archive) as archive:
                for place in archive.namelist():
                    yield Path(place).name, place
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self._archive}: no zip that can be read ({error})") from None
