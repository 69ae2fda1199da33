"""What an evaluation writes: figures of every way, tables, the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.config.data import DataSection
from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.data.rows import Row
from megatron_longrl.evaluation.asking import AS_IN_TRAINING, DIRECT, REASONING, Asking, askings
from megatron_longrl.evaluation.records import record_of_response, unanswered
from megatron_longrl.evaluation.report import whole_summary
from megatron_longrl.evaluation.summary import summarize
from megatron_longrl.evaluation.table import evaluation_table, sweep_table
from megatron_longrl.observability.frames_plot import plot_frames

ROW = Row("7", "Where?\nA. left\nB. right", "B", "", (), "spatial", "text", "rows.jsonl:7")
ENCODING = {"media": 1, "encoded": {"frames": 9}, "asked": {"frames": 24}}


def ways(**fields: Any) -> list[Asking]:
    """Of an evaluation with these fields; builders are the arguments that they are made of."""
    data = DataSection(video_frames=16, prompt_template=fields.pop("prompt_template", None))
    build: Any = lambda *arguments: arguments  # noqa: E731
    return askings(EvaluationSection(**fields), data, build)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [(16, AS_IN_TRAINING, None, True, True)]),
        ({"prompt_template": "t"}, [(16, AS_IN_TRAINING, "t", True, False)]),
        ({"benchmark": "mlvu"}, [(16, DIRECT, None, False, True)]),
        ({"benchmark": "mlvu", "prompt_template": "t"}, [(16, REASONING, "t", True, False)]),
        (
            {"video_frames": [8, 32], "reasoning": ["on", "off"]},
            [
                (8, REASONING, "think-answer", True, False),
                (8, DIRECT, None, False, True),
                (32, REASONING, "think-answer", True, False),
                (32, DIRECT, None, False, True),
            ],
        ),
        ({"reasoning": [False], "prompt_template": "t"}, [(16, DIRECT, None, False, True)]),
    ],
)
def test_ways_to_ask(fields: dict[str, Any], expected: list[tuple[Any, ...]]) -> None:
    found = [(w.frames, w.mode, *w.builder[1:], w.as_published) for w in ways(**fields)]  # type: ignore[index]
    assert found == expected
    assert [w.builder[0] for w in ways(**fields)] == [w[0] for w in expected]  # type: ignore[index]


def summaries(*right: int) -> list[dict[str, Any]]:
    """Of ten rows each, so many of them right."""
    return [
        summarize(
            [
                record_of_response(ROW, "B" if k < n else "A", float(k < n), 1.0, None)
                for k in range(10)
            ]
        )
        for n in right
    ]


def test_a_sweep(tmp_path: Path) -> None:
    asked = ways(video_frames=[32, 8], reasoning=["off", "on"])
    found = summaries(5, 7, 2, 3)
    whole = whole_summary(asked, found, ENCODING, {"samples_skipped": 0})
    assert whole["by_frames"] == {
        "32": {"direct": 0.5, "reasoning": 0.7},
        "8": {"direct": 0.2, "reasoning": 0.3},
    }
    assert whole["accuracy"] == 0.7, "of most frames, with reasoning"
    assert [(way["frames"], way["mode"]) for way in whole["ways"]] == [
        *((32, "direct"), (32, "reasoning"), (8, "direct"), (8, "reasoning"))
    ]
    table = sweep_table([(str(w.frames), w.mode) for w in asked], found, ENCODING)
    assert "   32  reasoning   70.0%   95 % interval 39.7% to 89.2%" in table
    assert "9 frames of 24 that were asked for" in table
    plot_frames(whole["ways"], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_rows_without_a_score_are_named_and_count_as_wrong() -> None:
    lost = [unanswered(replace(ROW, problem_id=str(k)), "gone.mp4: no such file") for k in range(7)]
    answered = [record_of_response(ROW, "B", 1.0, 1.0, None)]
    failed = [record_of_response(ROW, "?", None, 0.0, "no judge")]
    summary = summarize([*answered, *failed, *lost])
    assert (summary["accuracy"], summary["samples"], summary["unscored"]) == (1 / 9, 9, 8)
    assert summary["unscored_rows"][0] == {"problem_id": "7", "reason": "no judge"}
    table = evaluation_table(summary)
    assert "gone.mp4: no such file" in table and "and 3 more" in table
    assert summary["chance_accuracy"] == 0.5 and summary["majority_accuracy"] == 1.0
