"""A file under its own name is whole, whatever happens to who writes it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_longrl.atomic_file import atomic_write, atomic_write_text


@pytest.mark.parametrize("durable", [False, True])
def test_it_appears_at_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "file.json"
    with atomic_write(path, durable=durable) as aside:
        aside.write_text("half")
        assert not path.exists()
        aside.write_text("whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.json"]


def test_what_was_there_stays_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_text(path, "before")
    with pytest.raises(ValueError, match="no more"), atomic_write(path) as aside:
        aside.write_text("half")
        raise ValueError("no more")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "file", list[str]()

    def noting(name: str) -> Callable[..., None]:
        true = getattr(os, name)

        def call(*given: object) -> None:
            order.append(name)
            true(*given)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name))
    atomic_write_text(path, "text", durable=True)
    assert order == ["fsync", "replace", "fsync"]  # the folder's, for the name


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [str(number) * 100_000 for number in range(8)]
    writers = [threading.Thread(target=atomic_write_text, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["file"]
