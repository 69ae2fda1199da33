"""Modules of the user's own: found, imported once, and told of when they cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_longrl import plugins
from megatron_longrl.errors import UserError
from megatron_longrl.plugins import import_plugins, imported_plugins


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process in another folder, that has imported nothing."""
    monkeypatch.setattr(plugins, "_imported", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    Path(f"{name}.py").write_text(text)
    return name


def test_a_module_of_the_working_folder_is_imported_once() -> None:
    text = "import sys\nsys.longrl_count = getattr(sys, 'longrl_count', 0) + 1"
    name = write("longrl_counts", text)
    import_plugins([name])
    import_plugins([name, name])
    assert sys.longrl_count == 1  # type: ignore[attr-defined]
    assert imported_plugins() == (name,)


@pytest.mark.parametrize("name", ["no_such_module", "no.such.module"])
def test_a_module_that_is_nowhere(name: str) -> None:
    with pytest.raises(UserError, match=f"--plugin {name} cannot be imported: no such module"):
        import_plugins([name])


@pytest.mark.parametrize("name", ["./mine.py", "here/mine", "mine.py"])
def test_a_file_is_no_module(name: str) -> None:
    with pytest.raises(UserError, match=f"--plugin {name} names a file: give .* module, mine"):
        import_plugins([name])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails(text: str, told: str) -> None:
    name = write(f"longrl_fails_{abs(hash(text))}", text)
    with pytest.raises(UserError, match=f"--plugin {name} cannot be imported: {told}"):
        import_plugins([name])
    assert imported_plugins() == ()


def test_what_a_module_registers_wrongly_is_told_with_its_name() -> None:
    text = "from megatron_longrl.errors import UserError\nraise UserError('taken')"
    name = write("longrl_taken", text)
    with pytest.raises(UserError, match="--plugin longrl_taken: taken"):
        import_plugins([name])
