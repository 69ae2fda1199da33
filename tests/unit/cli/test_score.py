"""Scores of responses that anyone wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.cli.score import main
from tests.unit.evaluation.published import SAMPLES
from tests.unit.rewards.samples import write_file

ROWS: list[dict[str, Any]] = [
    {"answer": "A"},
    {"answer": "0.75", "problem_type": "numerical"},
    {"answer": "twelve", "problem_type": "numerical"},
]
RESPONSES = ["<think>t</think><answer>A</answer><|eot_id|>", r"<answer>\frac{3}{4}</answer>", "12"]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [
        {"problem_id": str(place), "problem": "q?", "data_type": "text", **row}
        for place, row in enumerate(ROWS)
    ]
    return write(tmp_path / "data.jsonl", rows)


@pytest.fixture
def responses(tmp_path: Path) -> str:
    return write(tmp_path / "responses.jsonl", [{"response": text} for text in RESPONSES])


def scores(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scores(
    data: str, responses: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "scores.jsonl"
    rewards = ["--rewards", "accuracy=0.5", "format", "--output", str(output)]
    assert main([data, responses, *rewards]) == 0
    assert scores(output) == [
        {"accuracy": 1.0, "format": 1.0},
        {"accuracy": 1.0, "format": 0.0},
        {
            "accuracy": None,
            "format": 0.0,
            "reason": "the reference answer 'twelve' is not one number",
        },
    ]
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(
        "means of 3 responses: accuracy 1.0000 (1 without), format 0.3333, reward 1.0000 "
        "(1 without); 1 of them mark no answer"
    )
    assert told.err.count("\n") == 1


def test_scores_go_to_standard_output(
    data: str, responses: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([data, responses]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [set(json.loads(line)) - {"reason"} for line in lines] == [{"accuracy", "format"}] * 3


def test_functions(data: str, responses: str, tmp_path: Path) -> None:
    code = """
    def words(response, limit):
        if response == "12":
            return 1e39
        return {"score": 1.0, "count": limit}

    def together(responses, answers):
        return [float(len(responses))] * len(answers)
    """
    file, output = write_file(tmp_path, code), tmp_path / "scores.jsonl"
    functions = ["--reward-function", f"{file}:words", f"{file}:together=0.5"]
    options = ["--reward-kwargs", '{"limit": 3}', "--output", str(output)]
    assert main([data, responses, *functions, *options]) == 0
    assert scores(output) == [
        *[{"words": 1.0, "words/count": 3.0, "together": 1.0}] * 2,
        {
            "words": None,
            "together": 1.0,
            "reason": "returned 1e+39, which is no finite number in float32",
        },
    ]


def test_several_failures_are_named(data: str, responses: str, tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    rewards = ["--rewards", "numeric", "temporal_iou", "--output", str(output)]
    assert main([data, responses, *rewards]) == 0
    assert scores(output)[0] == {
        "numeric": None,
        "temporal_iou": None,
        "reason": "numeric: the reference answer 'A' is not one number; "
        "temporal_iou: the reference answer 'A' has no segment of time",
    }


def test_the_rewards_of_a_recipe(data: str, responses: str, tmp_path: Path) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "scores.jsonl"
    recipe.write_text("rewards: [format]\nlr: 1e-6\n", encoding="utf-8")
    assert main([data, responses, "--config", str(recipe), "--output", str(output)]) == 0
    assert scores(output)[0] == {"format": 1.0}


@pytest.mark.parametrize(
    "content", [[{"response": text} for text in RESPONSES], {"answers": [{"response": "r"}] * 3}]
)
def test_json(data: str, tmp_path: Path, content: Any) -> None:
    """An array, and what evaluate writes."""
    path, output = tmp_path / "r.json", tmp_path / "scores.jsonl"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main([data, str(path), "--output", str(output)]) == 0
    assert len(scores(output)) == 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["{none}", "{responses}"], "none.jsonl: no such data file or folder"),
        (["{data}", "{none}"], "none.jsonl: no such file"),
        (["{data}", "{folder}"], "not a file"),
        (["{data}", "{two}"], "2 responses for the 3 rows of"),
        (["{data}", "{data}"], "data.jsonl:1: the row has no text 'response'"),
        (["{data}", "{numbers}"], "numbers.jsonl:1: the row is no JSON object"),
        (["{data}", "{broken}"], "broken.jsonl:2: not JSON"),
        (["{data}", "{deep}"], "deep.jsonl:1: not JSON"),
        (["{data}", "{bytes}"], "not a text file in UTF-8"),
        (["{data}", "{responses}", "--rewards", "acuracy"], "did you mean 'accuracy'?"),
        (["{data}", "{responses}", "--rewards", "accuracy=x"], "the weight 'x' is not a number"),
        (["{data}", "{responses}", "--rewards", "accuracy=0"], "nothing a weight"),
        (["{data}", "{responses}", "--rewards", "judge"], "judge_url is not set"),
        (["{data}", "{responses}", "--reward-function", "no.py:f"], "no.py: no such file"),
        (["{data}", "{responses}", "--outptu", "x"], "did you mean '--output'?"),
        (["{data}", "{responses}", "--output", "{folder}"], "cannot be written"),
        (["{data}"], "the following arguments are required: RESPONSES"),
        (["{data}", "{responses}", "more"], "unexpected argument 'more'"),
    ],
)
def test_mistakes(
    data: str,
    responses: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    line: str,
) -> None:
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff")
    (tmp_path / "broken.jsonl").write_text('{"response": "r"}\n{"response": \n')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    places = {
        "data": data,
        "responses": responses,
        "none": str(tmp_path / "none.jsonl"),
        "folder": str(tmp_path),
        "two": write(tmp_path / "two.jsonl", [{"response": "r"}] * 2),
        "numbers": write(tmp_path / "numbers.jsonl", [1, 2, 3]),
        **{name: str(tmp_path / f"{name}.jsonl") for name in ("broken", "deep", "bytes")},
    }
    assert main([text.format(**places) for text in changes]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    assert line in told.err


def test_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "video_mme", tmp_path / "scores.json"
    SAMPLES["video_mme"](folder)
    given = [{"problem_id": "002-1", "response": "D"}, {"problem_id": "000-1", "response": "A"}]
    predictions = write(tmp_path / "predictions.jsonl", given)
    flags = ["--benchmark", "video_mme", "--output", str(output)]
    assert main([str(folder), predictions, *flags]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["accuracy"] == result["benchmark_accuracy"] == pytest.approx(1 / 3)
    assert [answer["correct"] for answer in result["answers"]] == [0.0, 0.0, 1.0]
    told = capsys.readouterr().out
    assert "accuracy" in told and "001-1" in told and "there is no prediction" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"response": "A"}], "1 responses for the 3 rows"),
        ([{"problem_id": "9", "response": "A"}], "no row with the problem_id '9'"),
        (
            [{"problem_id": "000-1", "response": "A"}, {"response": "A"}],
            "response 2 has no 'problem_id', and others have one: give it to each",
        ),
        ([{"problem_id": "000-1", "response": "A"}] * 2, "two responses to the problem_id '000-1'"),
    ],
)
def test_predictions_that_belong_to_no_row(
    given: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "video_mme"
    SAMPLES["video_mme"](folder)
    predictions = write(tmp_path / "predictions.jsonl", given)
    assert main([str(folder), predictions, "--benchmark", "video_mme"]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_benchmark(responses: str, tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path), responses, "--benchmark", "videomme"]) == 2
    assert "'videomme' is no benchmark" in capsys.readouterr().err
