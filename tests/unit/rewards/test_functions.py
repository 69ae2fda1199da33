"""Users' functions: what they are given, and what they may return."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.rewards.functions import UserFunction, raised, shown
from megatron_longrl.rewards.result import RewardError, RewardResult
from tests.unit.rewards.samples import make_sample, write_file


def load(folder: Path, code: str, options: dict[str, Any] | None = None) -> UserFunction:
    return UserFunction(write_file(folder, code), "f", options or {})


@pytest.mark.parametrize(
    ("signature", "given"),
    [
        ("response", {"response": "r"}),
        (
            "prompt, response, answer, video, metadata",
            {
                "prompt": "q?",
                "response": "r",
                "answer": "B",
                "video": "v.mp4",
                "metadata": {"level": 3},
            },
        ),
        ("*, answer, limit", {"answer": "B", "limit": 5}),
        ("response, limit=1, other=2", {"response": "r", "limit": 5, "other": 2}),
        ("", {}),
    ],
)
def test_a_function_gets_the_arguments_that_it_names(
    tmp_path: Path, signature: str, given: dict[str, Any]
) -> None:
    function = load(tmp_path, f"def f({signature}):\n    return locals()", {"limit": 5})
    assert not function.is_batch and not function.is_async
    assert function.call([make_sample()]) == given


def test_a_function_that_takes_all_gets_all(tmp_path: Path) -> None:
    function = load(tmp_path, "def f(**given):\n    return given", {"limit": 5})
    assert set(function.call([make_sample()])) == {
        *("prompt", "response", "answer", "video", "image", "frames", "metadata", "limit")
    }


def test_a_batch_function_gets_lists(tmp_path: Path) -> None:
    code = "def f(responses, answers, prompts, videos, metadata, limit):\n    return locals()"
    function = load(tmp_path, code, {"limit": 5})
    assert function.is_batch
    assert function.call([make_sample("a", 0), make_sample("b", 1)]) == {
        "responses": ["a", "b"],
        "answers": ["B", "B"],
        "prompts": ["q?", "q?"],
        "videos": ["v.mp4", "v.mp4"],
        "metadata": [{"level": 3}, {"level": 3}],
        "limit": 5,
    }


def test_an_asynchronous_function_is_known(tmp_path: Path) -> None:
    assert load(tmp_path, "async def f(responses):\n    return []").is_async


def test_a_file_may_have_the_name_of_a_module_and_neighbours(tmp_path: Path) -> None:
    write_file(tmp_path, "LIMIT = 7", "neighbour_of_math.py")
    file = write_file(
        tmp_path,
        """
        import dataclasses
        import math
        from neighbour_of_math import LIMIT

        @dataclasses.dataclass
        class Found:
            root: float

        def f(response):
            return LIMIT + Found(math.sqrt(4)).root
        """,
        "math.py",
    )
    assert UserFunction(file, "f", {}).call([make_sample()]) == 9.0
    assert math.sqrt(9) == 3


@pytest.mark.parametrize(
    ("code", "options", "line"),
    [
        ("def g(response): pass", {}, "mine.py has no function 'f'"),
        ("f = 3", {}, "mine.py has no function 'f'"),
        ("def f(response:", {}, "mine.py cannot be imported: it raised SyntaxError"),
        ("import nothing_of_that_name", {}, "raised ModuleNotFoundError"),
        ("import sys; sys.exit(3)", {}, "cannot be imported: it raised SystemExit(3)"),
        ("def f(response, reply): pass", {}, "needs an argument 'reply', which is none of prompt"),
        ("def f(response, answers): pass", {}, "takes response and answers: name arguments of one"),
        (
            "def f(response): pass",
            {"answer": 1},
            "'answer' is the name of what functions get anyway",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, code: str, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(RewardError) as error:
        load(tmp_path, code, options)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"nothing\.py: no such file; check --reward-function"):
        UserFunction(str(tmp_path / "nothing.py"), "f", {})


# ---- What they return ----


@pytest.fixture
def single(tmp_path: Path) -> UserFunction:
    return load(tmp_path, "def f(response): pass")


@pytest.fixture
def batch(tmp_path: Path) -> UserFunction:
    return load(tmp_path, "def f(responses): pass")


@pytest.mark.parametrize("value", [1, 1.0, True])
def test_numbers(single: UserFunction, value: Any) -> None:
    assert single.outcomes(value, 1) == [RewardResult(1.0)]


def test_further_numbers(single: UserFunction) -> None:
    value = {"score": 0.5, "words": 3, "late": False}
    assert single.outcomes(value, 1) == [RewardResult(0.5, {"words": 3.0, "late": 0.0})]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, "returned None, which is no finite number"),
        ("1.0", "returned '1.0', which is no finite number"),
        (b"1", "returned b'1', which is no finite number"),
        (math.nan, "returned nan, which is no finite number"),
        (-math.inf, "returned -inf, which is no finite number"),
        (10**400, "which is no finite number"),
        (1j, "returned 1j, which is no finite number"),
        ([1.0], "returned [1.0], which is no finite number"),
        ({}, "returned {}, which has no 'score'"),
        ({"score": None}, "returned {'score': None}, in which 'score' is no finite number"),
        ({"score": 1, "kind": "x"}, "in which 'kind' is no finite number"),
        (object, "which is no finite number"),
    ],
)
def test_what_is_no_score(single: UserFunction, value: Any, line: str) -> None:
    (outcome,) = single.outcomes(value, 1)
    assert outcome.score is None
    assert line in str(outcome.error)


def test_a_batch_returns_a_score_for_every_response(batch: UserFunction) -> None:
    right = [RewardResult(1.0), RewardResult(0.5, {"words": 2.0})]
    assert batch.outcomes([1, {"score": 0.5, "words": 2}], 2) == right
    one_bad = batch.outcomes([1, None], 2)
    assert one_bad[0] == RewardResult(1.0) and one_bad[1].score is None


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([1.0], "returned 1 scores for 2 responses"),
        ([1.0, 1.0, 1.0], "returned 3 scores for 2 responses"),
        ([], "returned 0 scores for 2 responses"),
        (None, "returned None, which is no list"),
        (1.0, "returned 1.0, which is no list"),
        ("ab", "returned 'ab', which is no list"),
        ({"score": 1, "b": 2}, "which is no list"),
    ],
)
def test_a_batch_of_another_length_costs_its_group(
    batch: UserFunction, value: Any, line: str
) -> None:
    outcomes = batch.outcomes(value, 2)
    assert [outcome.score for outcome in outcomes] == [None, None]
    assert all(line in str(outcome.error) for outcome in outcomes)


def test_lines_stay_short() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError("no")

    assert shown("x\n" * 1000).endswith("…") and len(shown("x" * 1000)) < 300
    assert shown(Odd()) == "a Odd without a repr (ValueError)"
    assert raised(ValueError("a\nb")) == r"raised ValueError('a\nb')"
