"""Files that could not be read, kept over runs."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from megatron_longrl.media import quarantine
from megatron_longrl.media.deadline import NO_ANSWER
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.quarantine import Quarantine


def test_a_file_stays_until_it_changes(tmp_path: Path) -> None:
    broken, fine = tmp_path / "a.mp4", tmp_path / "b.mp4"
    broken.write_bytes(b"x" * 10)
    fine.write_bytes(b"y" * 10)
    lists = tmp_path / "quarantine"
    first = Quarantine(lists, 0)
    other = Quarantine(lists)
    first.add(str(broken), f"{broken}: not a video")
    first.add(str(tmp_path / "gone.mp4"), "no such file")
    Quarantine(lists, 1).add(str(tmp_path / "a.mp4"), "known already")
    (told,) = json.loads((lists / "0.json").read_text())
    assert (told["path"], told["reason"], told["size"]) == (str(broken), "not a video", 10)
    assert not (lists / "1.json").exists()
    other.learn(first.take_new())
    with pytest.raises(MediaError, match=r"not a video \(in quarantine"):
        other.check(broken)
    assert first.take_new() == {}
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


def test_a_file_that_does_not_answer_is_refused_without_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = tmp_path / "a.mp4"
    hung.write_bytes(b"x")
    answers = threading.Event()
    monkeypatch.setattr(quarantine, "_LOOK_UP_SECONDS", 0.1)
    run = Quarantine(tmp_path / "lists", 0)
    with monkeypatch.context() as away:
        away.setattr(quarantine, "identity", lambda path: answers.wait(60))
        run.add(str(hung), f"{hung}: {NO_ANSWER} 300 seconds")
        with pytest.raises(MediaError, match=r"300 seconds \(in quarantine"):
            run.check(hung)
        run.add(str(hung), f"{hung}: {NO_ANSWER} 300 seconds (in quarantine since)")
        answers.set()
    (told,) = json.loads((tmp_path / "lists/0.json").read_text())
    assert (told["path"], told["size"], told["reason"]) == (
        str(hung),
        None,
        "did not answer within 300 seconds",
    )
    later = Quarantine(tmp_path / "lists", 0)
    later.check(hung)  # nothing tells whether it has changed
    later.add(str(hung), f"{hung}: {NO_ANSWER} 300 seconds")
    with pytest.raises(MediaError, match="300 seconds"):
        Quarantine(tmp_path / "lists", 0).check(hung)
