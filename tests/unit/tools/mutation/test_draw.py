"""Mutants: drawn by a seed, the same number from every area, and none that nobody can catch."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import replace

import pytest

from tools.mutation.draw import draw, in_seeded_order, pick
from tools.mutation.equivalence import (
    Equivalent,
    add_equivalent,
    behaviour,
    read_equivalents,
)
from tools.mutation.mutants import digest_of, mutated, read_mutants, unified, write_mutants

BODY = '''"""A module - with a docstring."""

from __future__ import annotations

__all__ = ["f" + "g"]


def f(x: int | None, y: float = 2) -> int | None:
    """x + y."""
    if x is None:
        return None
    for step in range(3):
        y = y * step + x - 1
    total: int | None = x * y
    return total
'''
SOURCES = {
    "one": {"one.py": BODY, "two.py": BODY.replace("f(", "g(")},
    "other": {"other.py": BODY},
}


@pytest.fixture(scope="module")
def drawn():
    return draw(SOURCES, seed=3, per_area=6)


def test_every_area_gives_the_same_number(drawn):
    assert Counter(mutant.area for mutant in drawn) == {"one": 6, "other": 6}
    assert len({mutant.id for mutant in drawn}) == 12


def test_a_seed_decides_everything(drawn):
    assert draw(SOURCES, seed=3, per_area=6) == drawn
    assert draw(SOURCES, seed=4, per_area=6) != drawn
    # More of them are those and others.
    more = draw(SOURCES, seed=3, per_area=8)
    assert [mutant for mutant in more if mutant.area == "one"][:6] == drawn[:6]


def test_an_equivalent_one_is_replaced_by_the_next(drawn):
    gone = drawn[2]
    again = draw(SOURCES, 3, 6, [Equivalent(gone.file, gone.operator, gone.digest, "because")])
    assert again[:5] == [*drawn[:2], *drawn[3:6]]
    assert len(again) == 12 and again[6:] == drawn[6:]


def test_too_few_mutants_are_an_error():
    with pytest.raises(ValueError, match="one has only"):
        draw(SOURCES, seed=3, per_area=10_000)


def test_mutants_differ_in_what_they_do():
    everything = list(in_seeded_order("other", SOURCES["other"], seed=1))
    done = [behaviour(mutated(BODY, m.operator, m.occurrence)) for m in everything]
    assert None not in done and behaviour(BODY) not in done and len(set(done)) == len(done)
    lines = {mutant.lines[0] for mutant in everything}
    assert not lines & {1, 5, 9}


@pytest.mark.parametrize(
    ("change", "to", "same"),
    [
        ("int | None,", "int + None,", True),
        ("-> int | None", "-> int * None", True),
        ("total: int | None", "total: int & None", True),
        ('"f" + "g"', '"f" - "g"', True),
        ("x + y.", "x - y.", True),
        ("float = 2", "float = 3", False),
        ("range(3)", "range(4)", False),
        ("return None", "return None  # so", True),
    ],
)
def test_what_makes_a_difference(change, to, same):
    assert change in BODY
    assert (behaviour(BODY.replace(change, to)) == behaviour(BODY)) is same


def test_annotations_count_where_they_are_evaluated():
    source = BODY.replace("from __future__ import annotations", "")
    assert behaviour(source.replace("int | None,", "int + None,")) != behaviour(source)


def test_what_cannot_run_has_no_behaviour():
    assert behaviour("return 1") is None and behaviour("x = {//a}") is None


def test_patches_are_taken_by_git(drawn, tmp_path):
    for mutant in drawn:
        path = tmp_path / mutant.file
        path.write_text(SOURCES[mutant.area][mutant.file])
        subprocess.run(["git", "apply"], cwd=tmp_path, input=mutant.diff, text=True, check=True)
        source = SOURCES[mutant.area][mutant.file]
        assert path.read_text() == mutated(source, mutant.operator, mutant.occurrence)


def test_a_patch_may_end_without_a_newline():
    assert unified("a.py", "x = 1", "x = 2").count("\\ No newline at end of file\n") == 2


def test_the_digest_does_not_know_line_numbers(drawn):
    mutant = drawn[0]
    moved = unified(
        mutant.file,
        "# one more line\n" * 9 + SOURCES["one"][mutant.file],
        "# one more line\n" * 9
        + mutated(SOURCES["one"][mutant.file], mutant.operator, mutant.occurrence),
    )
    if mutant.lines[0] > 4:  # Else the new lines are among those around it.
        assert digest_of(moved) == mutant.digest


def test_the_list_is_read_as_it_was_written(drawn, tmp_path):
    write_mutants(tmp_path / "mutants.json", drawn)
    assert read_mutants(tmp_path / "mutants.json") == drawn


def test_the_list_of_equivalents(drawn, tmp_path):
    path = tmp_path / "equivalent.json"
    assert read_equivalents(path) == []
    for reason in ("first", "second thoughts"):
        add_equivalent(drawn[0], reason, path)
    add_equivalent(drawn[1], "another", path)
    listed = read_equivalents(path)
    assert {row.reason for row in listed} == {"second thoughts", "another"}
    assert sum(row.is_for(replace(drawn[0], lines=(99, 99))) for row in listed) == 1
    with pytest.raises(ValueError, match="no reason"):
        add_equivalent(drawn[2], " ", path)
        read_equivalents(path)


def test_some_are_picked_by_a_seed(drawn):
    assert pick(drawn, 1, 5) == pick(drawn, 1, 5) != pick(drawn, 2, 5)
    assert len(set(pick(drawn, 1, 5))) == 5
