"""Tests that are the same in two checkouts."""

from __future__ import annotations

import pytest

from tools.mutation.same import fingerprint, is_same

FILES = {
    "tests/unit/test_a.py": "from tests import helper\n\ndef test_a():\n    assert 1\n",
    "tests/unit/test_b.py": 'PROGRAM = "tests.unit.program"\n\ndef test_b():\n    assert 1\n',
    "tests/unit/program.py": "x = 1\n",
    "tests/unit/inner/conftest.py": "y = 1\n",
    "tests/unit/inner/test_c.py": "def test_c(golden):\n    assert 1\n",
    "tests/unit/inner/golden/c.json": "{}\n",
    "tests/unit/conftest.py": "z = 1\n",
    "tests/helper.py": "from tests.deeper import thing\n",
    "tests/deeper.py": "thing = 1\n",
    "tests/run.sh": "echo\n",
}
TESTS = [file for file in FILES if "/test_" in file]


@pytest.fixture
def checkouts(tmp_path):
    fingerprint.cache_clear()
    for name in ("one", "other"):
        for file, text in FILES.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tmp_path / "one", tmp_path / "other"


def same(checkouts):
    return [file for file in TESTS if is_same(checkouts[0], checkouts[1], file)]


def test_copies_are_the_same(checkouts):
    assert same(checkouts) == TESTS


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("tests/deeper.py", "thing = 2\n", ["tests/unit/test_a.py"]),
        ("tests/unit/program.py", "x = 2\n", ["tests/unit/test_b.py"]),
        ("tests/unit/inner/conftest.py", "y = 2\n", ["tests/unit/inner/test_c.py"]),
        ("tests/unit/inner/golden/c.json", "[]\n", ["tests/unit/inner/test_c.py"]),
        ("tests/unit/conftest.py", "z = 2\n", TESTS),
        ("tests/conftest.py", "z = 2\n", TESTS),
        ("tests/conftest.py", '"""Tiers."""\n\npytest_plugins = ["tests.run"]\n', []),
        ("tests/unit/__pycache__/test_a.pyc", "bytecode", []),
        ("tests/run.sh", "echo more\n", []),
        ("tests/deeper.py", "thing = 1  # indeed\n", []),
    ],
)
def test_what_a_test_stands_on_counts(checkouts, file, text, changed):
    (checkouts[1] / file).parent.mkdir(exist_ok=True)
    (checkouts[1] / file).write_text(text)
    (checkouts[1] / "tests" / "run.py").write_text("more = 1\n")
    assert same(checkouts) == [file for file in TESTS if file not in changed]


def test_files_may_be_said_to_be_alike(checkouts):
    (checkouts[1] / "tests/unit/conftest.py").write_text("z = 2\n")
    alike = ["tests/unit/conftest.py"]
    assert not is_same(checkouts[0], checkouts[1], TESTS[0])
    assert is_same(checkouts[0], checkouts[1], TESTS[0], alike)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def test_x():\n    pass\n", '@pytest.mark.full("a::b")\ndef test_x():\n    pass\n'),
        (
            '@pytest.mark.parametrize("x", [1, (2, 3)])\ndef test_x(x):\n    pass\n',
            '@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.full("a::b")), '
            'pytest.param(2, 3, marks=pytest.mark.full("a::b"))])\ndef test_x(x):\n    pass\n',
        ),
        (
            '@pytest.mark.parametrize("x", [pytest.param(1, id="one")])\ndef test_x(x):\n    ...\n',
            '@pytest.mark.parametrize("x", [pytest.param(1, id="one", '
            'marks=pytest.mark.full("a"))])\ndef test_x(x):\n    ...\n',
        ),
    ],
)
def test_the_tier_makes_no_difference(checkouts, before, after):
    file = TESTS[0]
    for checkout, text in zip(checkouts, (before, after), strict=True):
        (checkout / file).write_text(f"import pytest\n\n{text}")
    assert is_same(checkouts[0], checkouts[1], file)


def test_a_missing_file_is_not_the_same(checkouts):
    (checkouts[0] / TESTS[0]).unlink()
    assert not is_same(checkouts[0], checkouts[1], TESTS[0])
