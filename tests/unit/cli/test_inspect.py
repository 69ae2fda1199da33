"""What ``longrl inspect`` shows of names that a stranger has chosen."""

from __future__ import annotations

import io

from rich.console import Console

from megatron_longrl.cli.conversion.contents import Contents, Entry
from megatron_longrl.cli.inspect import show

FORGED = "a\nweight  7 x 7\r\x1b[2J\x1b]0;title\x07[bold]b"


def test_names_move_no_cursor_and_make_no_lines() -> None:
    written = io.StringIO()
    contents = Contents(f"{FORGED}: Megatron", {FORGED: FORGED}, [Entry(FORGED, (2,), FORGED, 4)])
    show(contents, Console(file=written, width=200))
    lines = written.getvalue().splitlines()
    # Title, fact, head of the table, tensor, sum.
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    assert all(r"a\nweight  7 x 7\r\x1b[2J\x1b]0;title\x07[bold]b" in lines[i] for i in (0, 1, 3))


def test_kinds_of_problems_are_printable() -> None:
    from megatron_longrl.evaluation.table import evaluation_table

    figures = dict.fromkeys(
        (
            *("accuracy", "accuracy_low", "accuracy_high", "chance_accuracy", "format", "reward"),
            *("majority_accuracy", "response_length", "samples_skipped", "well_formed"),
        ),
        0.5,
    )
    kinds = {"samples": 2, "by_problem_type": {FORGED: 0.5, "b": 0.5}}
    assert all(line.isprintable() for line in evaluation_table({**figures, **kinds}).split("\n"))
