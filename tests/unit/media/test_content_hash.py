"""A file's hash is the same everywhere, and its bytes are read once for as long as it stays."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.media_error import MediaError


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    digests: list[str] = []
    digest = hashlib.file_digest

    def counting(file: Any, name: Any) -> Any:
        digests.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    assert {content_hash(path) for _ in range(5)} == {hashlib.sha256(b"one").hexdigest()}
    assert content_hash(str(path)) == hashlib.sha256(b"one").hexdigest()
    assert len(digests) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert content_hash(path) == hashlib.sha256(b"two").hexdigest()
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["missing.mp4", "."])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError) as caught:
        content_hash(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
