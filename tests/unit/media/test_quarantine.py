"""Files that could not be read, kept over runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.quarantine import Quarantine


def test_a_file_stays_until_it_changes(tmp_path: Path) -> None:
    broken, fine = tmp_path / "a.mp4", tmp_path / "b.mp4"
    broken.write_bytes(b"x" * 10)
    fine.write_bytes(b"y" * 10)
    lists = tmp_path / "quarantine"
    first = Quarantine(lists, 0)
    first.add(str(broken), f"{broken}: not a video")
    first.add(str(tmp_path / "gone.mp4"), "no such file")
    Quarantine(lists, 1).add(str(tmp_path / "a.mp4"), "known already")
    (told,) = json.loads((lists / "0.json").read_text())
    assert (told["path"], told["reason"], told["size"]) == (str(broken), "not a video", 10)
    assert not (lists / "1.json").exists()
    (lists / "2.json").write_text('[{"path"')
    later = Quarantine(lists, 3)
    assert len(later) == 1
    later.check(fine)
    with pytest.raises(MediaError, match=r"not a video \(in quarantine"):
        later.check(broken)
    os.utime(broken, (1, 1))
    later.check(broken)
    later.add(str(broken), "still none")
    with pytest.raises(MediaError, match="still none"):
        Quarantine(lists, 0).check(broken)
