"""Counts of the objects that a pickle would make, before any of them is made.

An unpickler that knows only harmless classes can still be kept busy for ever, or be made to take
all memory: a tuple that holds another one twice, sixty times over, is some hundred bytes, and its
hash takes 2^60 steps; one opcode makes a table of any size. Here the opcodes are read without being
followed. A pickle that passes takes time and memory in proportion to the bytes of the pickle.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_COPIES = 64
"""The most bytes that the values have when they are written out in full, by the bytes of the
pickle. Checkpoints have less than ten: names, and places of shards, are used a few times each."""

MOST_LEVELS = 64
"""The deepest nesting. Checkpoints have about a dozen levels."""

LARGEST_NUMBER = 1 << 60
"""Bound of whole numbers: larger ones can have equal hashes, which makes dictionaries slow."""

MOST_NUMBERED = 1024
"""The most numbers that are keys of dictionaries. Numbers can be chosen so that each is found only
after all those before it; texts cannot, because Python hashes them with a secret."""

KEY_CLASS = "torch.distributed.checkpoint.metadata MetadataIndex"
"""The only class of keys; who makes them has to see to their hashes."""

_MARK = None

_ATOMS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
}
_CONTAINERS = {"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"BINPUT", "LONG_BINPUT"}
_GETS = {"BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME"}


@dataclass(frozen=True)
class Atom:
    """A value without parts."""

    size: int
    """The bytes that it takes in the pickle."""
    value: object
    """The value; of a class or function ``module name``."""


@dataclass
class Value:
    """A value with parts."""

    size: int = 1
    """The bytes of its parts that are atoms."""
    parts: list[Value] = field(default_factory=list)
    """Other parts of the value."""
    items: tuple[Atom | Value, ...] = ()
    """All parts of a tuple."""
    made_by: object = None
    """The class, as ``module name``, or another value, that makes it; None of a container."""
    is_part: bool = False
    """Whether another value holds it."""
    total: int = 0
    """The bytes that it takes when it is written out in full; 0 until they are counted."""
    levels: int = 0
    """The levels of its nesting."""


@dataclass(frozen=True)
class Scan:
    """The names in a pickle."""

    names: list[str]
    """The classes and functions, as ``module name``."""
    storages: list[tuple[object, ...]]
    """The identifiers of what lies outside the pickle, as torch writes them."""


def scan(data: bytes) -> Scan:
    """Look through a pickle of values such as checkpoints hold.

    Args:
        data: the whole pickle, with nothing behind it.

    Raises:
        ValueError: saying what is wrong with it.
    """
    reader = _Reader()
    for name, argument, size in _opcodes(data):
        reader.read(name, argument, size)
    _check_sizes(reader.values, MOST_COPIES * len(data))
    return Scan(reader.names, reader.storages)


def _opcodes(data: bytes) -> Iterator[tuple[str, object, int]]:
    """Name, argument and bytes of every opcode.

    Raises:
        ValueError: there is something behind the last one, or one is cut off or not known.
    """
    before: tuple[str, object, int] | None = None
    for opcode, argument, start in pickletools.genops(data):
        assert start is not None
        if before is not None:
            yield before[0], before[1], start - before[2]
        before = opcode.name, argument, start
    assert before is not None, "genops raises ValueError where no opcode ends the pickle"
    yield before[0], before[1], 1
    if before[2] + 1 != len(data):
        raise ValueError("it goes on behind its end")


class _Reader:
    """Follows the opcodes of one pickle with sizes in place of values."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.names: list[str] = []
        self.storages: list[tuple[object, ...]] = []
        self._stack: list[Atom | Value | None] = []
        self._memo: list[Atom | Value] = []
        self._numbered = 0

    def read(self, name: str, argument: object, size: int) -> None:
        """One opcode."""
        if name in _ATOMS:
            if isinstance(argument, int) and abs(argument) >= LARGEST_NUMBER:
                raise ValueError("it holds a number that no checkpoint needs")
            self._stack.append(Atom(size, argument))
        elif name in _GETS:
            assert isinstance(argument, int)
            if argument >= len(self._memo):
                raise ValueError("it refers to a value that it does not hold")
            self._stack.append(self._memo[argument])
        elif name == "MEMOIZE" or name in _PUTS:
            self._put(argument)
        elif name in _CONTAINERS:
            self._new(())
        elif name in _TUPLES:
            self._new(self._pop(_TUPLES[name]))
        elif name == "TUPLE":
            self._new(self._pop_to_mark())
        elif name in ("APPEND", "BUILD"):
            self._add(self._pop(1))
        elif name == "APPENDS":
            self._add(self._pop_to_mark())
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            self._check_keys(items[::2])
            self._add(items)
        elif name in ("REDUCE", "NEWOBJ"):
            made_by, arguments = self._pop(2)
            self._new((made_by, arguments), getattr(made_by, "value", made_by))
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name == "GLOBAL":
            self._name(str(argument), size)
        elif name == "STACK_GLOBAL":
            module, called = self._pop(2)
            if not isinstance(module, Atom) or not isinstance(called, Atom):
                raise ValueError("a class has no name")
            self._name(f"{module.value} {called.value}", size + module.size + called.size)
        elif name == "BINPERSID":
            self._storage(*self._pop(1))
        elif name == "STOP":
            self._pop(1)
            if self._stack:
                raise ValueError("it ends in the middle")
        elif name not in _NOTHING:
            raise ValueError(f"it uses {name}, which no checkpoint needs")

    def _put(self, argument: object) -> None:
        # A larger number makes an unpickler's table as large.
        if argument not in (None, len(self._memo)):
            raise ValueError("it keeps values by numbers that do not follow each other")
        top = self._stack[-1] if self._stack else _MARK
        if top is _MARK:
            raise ValueError("it keeps a value where there is none")
        self._memo.append(top)

    def _pop(self, count: int) -> tuple[Atom | Value, ...]:
        taken = [self._stack.pop() for _ in range(count)] if len(self._stack) >= count else [_MARK]
        found = tuple(value for value in reversed(taken) if value is not _MARK)
        if len(found) != count:
            raise ValueError("it takes values where there are none")
        return found

    def _pop_to_mark(self) -> tuple[Atom | Value, ...]:
        found: list[Atom | Value] = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                return tuple(reversed(found))
            found.append(value)
        raise ValueError("it takes values where there are none")

    def _check_keys(self, keys: tuple[Atom | Value, ...]) -> None:
        """Look whether a dictionary with these keys is made as fast as it is read."""
        for key in keys:
            if isinstance(key, Value) and key.made_by != KEY_CLASS:
                raise ValueError("a dictionary has keys that no checkpoint needs")
            if isinstance(key, Atom) and not isinstance(key.value, str):
                self._numbered += 1
        if self._numbered > MOST_NUMBERED:
            raise ValueError("its dictionaries have more numbers as keys than a checkpoint needs")

    def _new(self, parts: tuple[Atom | Value, ...], made_by: object = None) -> None:
        value = Value(items=parts, made_by=made_by)
        self.values.append(value)
        self._stack.append(value)
        self._add(parts)

    def _add(self, parts: tuple[Atom | Value, ...]) -> None:
        """Let the value on top hold more."""
        whole = self._stack[-1] if self._stack else _MARK
        if not isinstance(whole, Value):
            raise ValueError("it changes a value that has no parts")
        for part in parts:
            whole.size += 1
            if isinstance(part, Value):
                part.is_part = True
                whole.parts.append(part)
            else:
                whole.size += part.size

    def _name(self, name: str, size: int) -> None:
        self.names.append(name)
        self._stack.append(Atom(size, name))

    def _storage(self, identifier: Atom | Value) -> None:
        items = identifier.items if isinstance(identifier, Value) else ()
        self.storages.append(
            tuple(item.value if isinstance(item, Atom) else None for item in items)
        )
        self._new((identifier,))


def _check_sizes(values: list[Value], most: int) -> None:
    """Count the bytes of all values, each with what it holds, from the inside to the outside.

    Raises:
        ValueError: they are more than ``most``, nested too deeply, or one is within itself.
    """
    for value in values:
        if value.total:
            continue
        waiting = [(value, iter(value.parts))]
        value.total = -1  # is being counted
        while waiting:
            outer, parts = waiting[-1]
            part = next((part for part in parts if part.total <= 0), None)
            if part is None:
                outer.total = outer.size + sum(part.total for part in outer.parts)
                outer.levels = 1 + max((part.levels for part in outer.parts), default=0)
                if outer.total > most:
                    raise ValueError("its values hold each other too many times")
                if outer.levels > MOST_LEVELS:
                    raise ValueError("its values are nested too deeply")
                waiting.pop()
                continue
            if part.total < 0:
                raise ValueError("a value is within itself")
            part.total = -1
            waiting.append((part, iter(part.parts)))
    if sum(value.total for value in values if not value.is_part) > most:
        raise ValueError("its values hold each other too many times")
