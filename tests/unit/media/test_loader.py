"""Units loaded within a deadline, and again after errors that may pass."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from megatron_longrl.media import read_policy
from megatron_longrl.media.deadline import go_on
from megatron_longrl.media.loader import MediaLoader
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.read_policy import ReadPolicy
from megatron_longrl.media.spec import MediaSpec, UnitTensors


@dataclass(frozen=True)
class Recording(MediaSpec):
    """A medium whose units are their own numbers."""

    modality: ClassVar[str] = "recording"

    path: str
    read: Callable[[], object] = field(default=lambda: None, compare=False)
    """Is called before units are given."""
    content: str = ""
    preprocess: Hashable = None
    num_units: int = 8
    unit_bytes: int = 8

    def key(self) -> str:
        return self.path

    def tokens_of(self, units: range) -> int:
        return len(units)

    def cost(self) -> float:
        return 1.0

    def load(self, units: range) -> UnitTensors:
        self.read()
        return (torch.tensor(list(units)),)


def numbers(result: UnitTensors | MediaError) -> list[int]:
    assert not isinstance(result, MediaError), result
    return list(result[0].tolist())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "load media"]


@pytest.fixture
def loader() -> Iterator[MediaLoader]:
    loader = MediaLoader(ReadPolicy(seconds=0.3))
    yield loader
    loader.close()
    until(lambda: not threads())


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_does_not_answer_is_given_up_and_the_rest_is_loaded(loader: MediaLoader) -> None:
    answers = threading.Event()
    hung = Recording("hung", lambda: answers.wait(60))
    requests = [(hung, range(2)), (Recording("a"), range(3)), (Recording("b"), range(2, 4))]
    before = time.monotonic()
    late, a, b = loader.load(requests)
    assert time.monotonic() - before < 10
    assert str(late) == "hung: did not answer within 0.3 seconds (--media-timeout)"
    assert (numbers(a), numbers(b)) == ([0, 1, 2], [2, 3])
    answers.set()  # the fixture sees that both threads end


def test_a_decoder_without_an_end_ends(loader: MediaLoader) -> None:
    def endless() -> None:
        while True:
            go_on()

    (late,) = loader.load([(Recording("endless", endless), range(1))])
    assert "endless: did not answer" in str(late)
    until(lambda: not threads())


def test_each_file_has_the_whole_time(loader: MediaLoader) -> None:
    specs = [Recording(str(number), lambda: time.sleep(0.2)) for number in range(3)]
    assert [numbers(r) for r in loader.load([(spec, range(1)) for spec in specs])] == [[0]] * 3


@pytest.mark.parametrize(
    ("number", "retries", "tries"),
    [
        (errno.EIO, 2, 3),
        (errno.ESTALE, 1, 2),
        (errno.EAGAIN, 0, 1),
        (errno.ETIMEDOUT, 2, 3),
        (errno.ENOENT, 2, 1),
    ],
)
@pytest.mark.parametrize("seconds", [None, 60.0])
def test_errors_that_may_pass_are_tried_again(
    number: int, retries: int, tries: int, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_policy, "FIRST_PAUSE", 0.0)
    seen = {"loaded": 0, "opened": 0, "recovers": 0}

    def fails(what: str, times: int) -> None:
        seen[what] += 1
        if seen[what] <= times:
            raise OSError(number, os.strerror(number))

    reading = ReadPolicy(seconds, retries)
    with pytest.raises(MediaError, match=os.strerror(number)):
        reading.read(Path("a"), lambda: fails("opened", 9))
    bad = Recording("bad", lambda: fails("loaded", 9))
    recovers = Recording("good", lambda: fails("recovers", 1))
    loader = MediaLoader(reading)
    failed, other = loader.load([(bad, range(1)), (recovers, range(1))])
    loader.close()
    assert os.strerror(number) in str(failed)
    assert isinstance(other, MediaError) == (tries == 1)
    assert (seen["opened"], seen["loaded"]) == (tries, tries)


def test_pauses_become_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def stale() -> None:
        raise OSError(errno.ESTALE, "stale")

    with pytest.raises(MediaError, match="stale"):
        ReadPolicy(None, 2).read(Path("a"), stale)
    assert pauses == [0.5, 1.0]


def test_ahead_within_the_budget_and_errors_where_they_are_used() -> None:
    read: list[tuple[str, str]] = []

    def note(name: str) -> None:
        read.append((name, threading.current_thread().name))
        if name == "bad":
            raise OSError(errno.EISDIR, "not a recording")

    def spec(name: str) -> Recording:
        return Recording(name, lambda: note(name))

    loader = MediaLoader(ReadPolicy(seconds=60.0), ahead_bytes=4 * 8)
    first, bad, large, last = ([(spec(name), range(2))] for name in ("a", "bad", "c", "d"))
    large = [(spec("c"), range(4))]
    loader.load_ahead([first, bad, large, last])
    assert [numbers(found) for found in loader.load(first)] == [[0, 1]]
    (failed,) = loader.load(bad)
    assert "not a recording" in str(failed)
    assert numbers(loader.load(large)[0]) == [0, 1, 2, 3]
    ahead, now = "load media ahead", "load media"
    assert read == [("a", ahead), ("bad", ahead), ("c", now)], "the others were over the budget"
    loader.load_ahead([last])
    assert numbers(loader.load([(spec("d"), range(1))])[0]) == [0], "other units of it"
    loader.load_ahead([])
    until(lambda: not any(thread.name == ahead for thread in threading.enumerate()))
    loader.close()
    assert not threads()


def test_what_hangs_ahead_is_given_up_where_it_is_used() -> None:
    answers = threading.Event()
    loader = MediaLoader(ReadPolicy(seconds=0.3), ahead_bytes=1000)
    hung = [(Recording("hung", lambda: answers.wait(60)), range(1)), (Recording("a"), range(1))]
    behind = [(Recording("b"), range(1))]
    loader.load_ahead([hung, behind])
    late, good = loader.load(hung)
    assert "hung: did not answer" in str(late) and numbers(good) == [0]
    assert numbers(loader.load(behind)[0]) == [0]
    answers.set()
    loader.close()


def test_looking_ahead_is_no_queue() -> None:
    looked: list[int] = []
    go = threading.Event()

    def wait() -> None:
        go.wait(60)
        looked.append(1)

    loader = MediaLoader(ReadPolicy(seconds=60.0))
    loader.look_ahead(wait)
    loader.look_ahead(lambda: looked.append(2))
    go.set()
    until(lambda: looked == [1])
    until(lambda: loader._looked is not None and loader._looked.done())
    loader.look_ahead(lambda: looked.append(3))
    until(lambda: looked == [1, 3])
    loader.close()
