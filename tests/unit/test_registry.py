"""Names of objects: where they come from, and what is told of one that means nothing."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from megatron_longrl import registry as registry_module
from megatron_longrl.errors import UserError
from megatron_longrl.registry import Problem, Registry, instance_of, subclass_of

GROUP = "megatron_longrl.tests"


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points of installed packages."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry_module, "entry_points", lambda group: found)
    return found


def make(problem: Problem = lambda name, value: None) -> Registry[object]:
    built_in: dict[str, str | object] = {"stem": "posixpath:sep", "plain": 7}
    return Registry("rollout engine", GROUP, built_in, problem=problem)


def test_objects_of_all_three_sources(points: list[EntryPoint]) -> None:
    points.append(EntryPoint("join", "posixpath:pathsep", GROUP))
    registry = make()
    assert registry.register("own", 3) == 3
    assert registry.names() == ("stem", "plain", "own", "join")
    assert registry.built_in == ("stem", "plain")
    assert [registry.find(name) for name in registry.names()] == ["/", 7, 3, ":"]
    assert "join" in registry and "other" not in registry


def test_an_unknown_name_is_told_with_the_nearest(points: list[EntryPoint]) -> None:
    registry = make()
    assert registry.unknown("stem") is None
    told = (
        "'stern' is no rollout engine; did you mean 'stem'?; there are stem, plain, and what a "
        "--plugin module registers"
    )
    assert registry.unknown("stern") == told
    with pytest.raises(UserError, match="'stern' is no rollout engine"):
        registry.find("stern")


@pytest.mark.parametrize("name", ["stem", "own"])
def test_a_name_is_registered_once(name: str, points: list[EntryPoint]) -> None:
    registry = make()
    registry.register("own", 3)
    with pytest.raises(UserError, match=f"rollout engine '{name}' is registered already"):
        registry.register(name, 4)


def test_a_name_is_an_identifier(points: list[EntryPoint]) -> None:
    with pytest.raises(UserError, match="letters, digits and underscores"):
        make().register("a b", 4)


@pytest.mark.parametrize("name", ["stem", "own", "twice"])
def test_an_entry_point_takes_no_name_of_another(name: str, points: list[EntryPoint]) -> None:
    points += [EntryPoint("twice", "a:b", GROUP), EntryPoint("twice", "c:d", GROUP)]
    points += [EntryPoint("stem", "a:b", GROUP), EntryPoint("own", "a:b", GROUP)]
    registry = make()
    registry.register("own", 3)
    with pytest.raises(UserError, match=f"'{name}' is given more than once"):
        registry.find(name)


def test_an_entry_point_that_cannot_be_imported(points: list[EntryPoint]) -> None:
    points.append(EntryPoint("gone", "no_such_package.at_all:it", GROUP))
    with pytest.raises(UserError, match=r"'gone' of the entry point no_such_package.* cannot be"):
        make().find("gone")


@pytest.mark.parametrize(
    ("problem", "value", "told"),
    [
        (instance_of(str), 3, "an object of type int is registered where a str has to be"),
        (instance_of(str), str, "the class str is registered where a str has to be"),
        (subclass_of(str), "a", "of type str is registered where a subclass of str has to be"),
        (instance_of(int), make, "the function make is registered where a int has to be"),
    ],
)
def test_an_object_of_another_kind(
    problem: Problem, value: object, told: str, points: list[EntryPoint]
) -> None:
    with pytest.raises(UserError, match=f"rollout engine 'own': .*{told}"):
        make(problem).register("own", value)


def test_what_an_entry_point_brings_is_checked_where_it_is_asked_for(
    points: list[EntryPoint], caplog: pytest.LogCaptureFixture
) -> None:
    points += [
        EntryPoint("wrong", "posixpath:join", GROUP),
        EntryPoint("a b", "posixpath:sep", GROUP),
    ]
    registry = make(instance_of(str))
    with pytest.raises(UserError, match="'wrong' of the entry point posixpath:join: the function"):
        registry.find("wrong")
    with pytest.raises(UserError, match="'a b' of the entry point posixpath:sep: a name has"):
        registry.find("a b")
    # Whoever asks for all of them does without.
    assert registry.usable() == {"stem": "/", "plain": 7}
    assert registry.usable() == {"stem": "/", "plain": 7}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
