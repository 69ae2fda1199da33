"""``longrl data``."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.cli.data import main
from megatron_longrl.data.rows import load_rows
from tests.unit.evaluation.published import SAMPLES


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SAMPLES["mmau"](tmp_path / "mmau")
    rows = tmp_path / "rows" / "mmau.jsonl"
    assert main(["convert", "mmau", "--data", str(tmp_path / "mmau"), "--output", str(rows)]) == 0
    assert capsys.readouterr().out == f"{rows}: 3 rows of mmau\n"
    assert [row.answer for row in load_rows([rows])] == ["A", "D", "B"]


def test_published_files_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAMPLES["mmau"](tmp_path / "mmau")
    published = next(path for path in (tmp_path / "mmau").rglob("*.json"))
    before = published.read_bytes()
    words = ["convert", "mmau", "--data", str(tmp_path / "mmau"), "--output", str(published)]
    assert main(words) == 2
    assert f"--output {published} would replace what is read" in capsys.readouterr().err
    assert published.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convrt"], "longrl data has no action 'convrt'; did you mean"),
        (["convert", "mmau"], "--data and --output are missing"),
        (["convert", "mmmau", "--data", ".", "--output", "x"], "'mmmau' is no benchmark"),
        (["convert", "mmau", "--data", "nowhere", "--output", "x"], "nowhere: no such folder"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
