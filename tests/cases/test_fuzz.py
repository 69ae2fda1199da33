"""A small part of what ``python -m tests.fuzz`` reads, and that it sees faults."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import media, rows, seeds
from tests.fuzz.isolated import END, EXCEPTION, HANG, READ, Isolated, Outcome


def test_odd_inputs_are_read_or_refused(tmp_path: Path) -> None:
    counts = {"rows": 100, "images": 150, "videos": 32, "sounds": 34, "checkpoints": 20}
    arguments = [word for kind, count in counts.items() for word in (f"--{kind}", str(count))]
    found = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments, "--keep", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    *lines, last = found.stdout.splitlines()
    assert last.startswith("336 inputs, seed 1: 0 hang, 0 end of the process, 0 foreign exception")
    for (kind, count), line in zip(counts.items(), lines, strict=True):
        name, number, read, _, refused, *_ = line.replace(":", "").split()
        assert (name, int(number)) == (kind, count)
        assert int(read) + int(refused) == count
        assert min(int(read), int(refused)) > count / 10
        assert "; 0 on which a library wrote to stderr" in line


def test_seeds_are_good(tmp_path: Path) -> None:
    """Or their mutants would tell nothing."""
    work = media.Media(tmp_path)
    sounds = media.Sounds(tmp_path)
    for name, data in seeds.sounds(tmp_path):
        assert sounds((media.field_of("sounds", name), data)).kind == READ, name
    for kind, found in (("videos", seeds.videos(tmp_path)), ("images", seeds.images())):
        outcomes = []
        for name, data in found:
            if name.split(".")[-1] in ("magic", "eps", "pdf", "palm", "ftex"):
                continue  # Pillow writes these, or knows their letters, and does not read them
            outcomes.append(work((kind, data)).kind)
        assert set(outcomes) == {READ}
        assert len(outcomes) > 10


def _odd(how: str) -> Outcome:
    match how:
        case "bug":
            raise KeyError("frame")
        case "quiet bug":
            sys.stderr.write("Traceback (most recent call last):\n  …\n")
            sys.stderr.flush()
            os.write(2, b"Traceback (most recent call last):\n")
        case "noise":
            os.write(2, b"[vp9 @ 0x1] Not all references are available\n")
        case "end":
            os._exit(5)
        case "hang":
            time.sleep(60)
    return Outcome(READ)


def test_faults_are_seen() -> None:
    """An exception, one that is only printed, a process that ends, and one that hangs."""
    isolated = Isolated(_odd, 1.0)
    assert isolated("good") == Outcome(READ)
    bug = isolated("bug")
    assert bug.kind == EXCEPTION and "KeyError" in bug.told
    assert isolated("quiet bug").kind == EXCEPTION
    assert isolated("noise") == Outcome(READ, is_noisy=True)
    assert isolated("end") == Outcome(END, "exit status 5")
    assert isolated("hang").kind == HANG
    assert isolated("good") == Outcome(READ)
    isolated.close()


def test_a_process_ends_with_its_parent() -> None:
    """The process is not closed by its parent, which ends at once."""
    code = (
        "import os\nfrom tests.fuzz.isolated import Isolated\n"
        "print(Isolated(print, 1.0)._process.pid, flush=True)\nos._exit(0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=30
    )
    pid = int(found.stdout)  # and with it the other end of the pipe
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(pid, 0)
            time.sleep(0.1)


def test_mutants_differ_and_repeat() -> None:
    data = bytes(range(256)) * 8
    made = [media.mutate(data, random.Random(n)) for n in range(200)]
    assert made == [media.mutate(data, random.Random(n)) for n in range(200)]
    assert len(set(made)) > 150
    assert list(rows.make(3, 50)) == list(rows.make(3, 50))
    assert len(set(rows.make(3, 50))) > 40


@pytest.mark.parametrize(
    "line",
    [b'{"problem": "a"}', b"\xff", b'{"problem": "a", "answer": "b", "videos": "/dev/zero"}'],
)
def test_a_line_without_the_sample_is_a_fault(
    tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = rows.Rows(tmp_path)
    assert work(line).kind == "refused"
    from megatron_longrl.data.rows import RowProblem

    monkeypatch.setattr(RowProblem, "__str__", lambda problem: problem.reason)
    monkeypatch.setattr(RowProblem, "location", ("somewhere", 1))
    assert work(line).kind == "wrong result"
