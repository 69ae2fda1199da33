"""Logs and copies that a kill leaves usable, and results that are read from them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutation.copies import changed, make_copy
from tools.mutation.files import append_line, read_lines
from tools.mutation.mutants import Mutant
from tools.mutation.report import read_results, report
from tools.mutation.run import only_one
from tools.mutation.suites import Suite


def test_a_broken_line_takes_no_other_with_it(tmp_path):
    path = tmp_path / "log" / "lines.jsonl"
    assert read_lines(path) == []
    append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "so')  # killed
    append_line(path, {"n": 3})
    assert read_lines(path) == [{"n": 1}, {"n": 3}]


# ---- Copies ----


def commit(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("ignored.py\n")
    return folder


def test_a_copy_has_the_tests_of_another_checkout(tmp_path):
    here = commit(tmp_path / "here", package__a_py="1", tests__t_py="new", ignored_py="")
    old = commit(tmp_path / "old", package__a_py="0", tests__t_py="old", tests__u_py="old")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "left.py").write_text("")
    copy = make_copy(tmp_path / "copy", old, here)
    found = {path.name: path.read_text() for path in copy.rglob("[a-u].py")}
    assert found == {"a.py": "1", "t.py": "old", "u.py": "old"}
    assert not (copy / "left.py").exists() and not (copy / "ignored.py").exists()
    assert (copy / "tools" / "mutation" / "contexts.py").exists()


def test_no_bytecode_hides_a_change(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("value = 1\n")
    os.utime(path, (0, 0))

    def value() -> str:
        command = [sys.executable, "-c", "import module; print(module.value)"]
        around = {key: v for key, v in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert value() == "1" and Path(importlib.util.cache_from_source(str(path))).exists()
    with pytest.raises(KeyError), changed(tmp_path, "module.py", "value = 2\n"):
        assert value() == "2"
        raise KeyError
    assert value() == "1"


def test_two_do_not_work_in_one_folder(tmp_path):
    with only_one(tmp_path), pytest.raises(RuntimeError, match="another"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


# ---- Suites and the report ----


def test_suites_by_checkout_and_expression(tmp_path):
    (tmp_path / "tests").mkdir()
    assert Suite.parse(f"full={tmp_path}") == Suite("full", tmp_path)
    assert Suite.parse(f"first={tmp_path}:not full").expression == "not full"
    for wrong in (f"{tmp_path}", "a=/nowhere", f"a b={tmp_path}"):
        with pytest.raises(ValueError, match="CHECKOUT"):
            Suite.parse(wrong)


def mutant(name: str, area: str) -> Mutant:
    return Mutant(name, area, "f.py", (3, 3), "core/Op", 0, "d", "s", f"--- a\n+++ {name}\n")


def test_report(tmp_path):
    path = tmp_path / "results.jsonl"
    told = {
        ("a-1", "first"): "caught",
        ("a-1", "full"): "caught",
        ("a-1", "old"): "caught",
        ("a-2", "first"): "survived",
        ("a-2", "full"): "caught",
        ("a-2", "old"): "caught",
        ("b-1", "first"): "unreached",
        ("b-1", "full"): "unreached",
        ("b-1", "old"): "unreached",
        ("b-2", "first"): "caught",
    }
    for (name, suite), outcome in told.items():
        row = {"mutant": name, "suite": suite, "outcome": outcome, "seconds": 36.0}
        test = "tests/x.py::t" if outcome == "caught" else ""
        append_line(
            path,
            {
                **row,
                "test": test,
                "tests": 0 if outcome == "unreached" else 1,
                "inferred": ["first"] if suite == "full" else [],
            },
        )
    mutants = [mutant("a-1", "a"), mutant("a-2", "a"), mutant("b-1", "b"), mutant("b-2", "b")]
    text = report(mutants, read_results(path))
    assert "| area | first | full | old |" in text
    assert "| a | 1 of 2 | 2 of 2 | 2 of 2 |" in text
    assert "| all | 2 of 4 | 2 of 3 | 2 of 3 |" in text
    assert "`first` catches 1, `old` 2: 50.0%." in text and "met 3 of 4" in text
    assert "3 of them inferred" in text and "0.1 hours" in text
    missed, survived = text.split("## Missed by `first`")[1], text.split("## Caught by none")[1]
    assert "`old` by `tests/x.py::t`" in missed and "+++ a-2" in missed.split("##")[1]
    assert "+++ b-1" in survived and "No test." in survived and "a-2" not in survived
