"""The progress of a run on stdout: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressLines:
    """Prints lines; on a terminal they scroll above a progress bar."""

    def __init__(self, title: str, total: int, stream: TextIO | None = None) -> None:
        """`total` is the number of steps of the whole run; `stream` is stdout by default."""
        self._stream = stream or sys.stdout
        self._title = title
        self._total = total
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def step(self, iteration: int, summary: str) -> None:
        """Move the bar to `iteration`, with a few words on the last step."""
        if not self._stream.isatty():
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[summary]}"),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=self._total, summary="")
            self._bar.start()
        if self._task is not None:
            self._bar.update(self._task, completed=iteration, summary=summary)

    def line(self, text: str) -> None:
        """Print one whole line."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
