"""A judge behind an endpoint that is fine, down, slow, busy or out of its mind."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.rewards.judge import Judge
from megatron_longrl.rewards.result import RewardResult
from tests.unit.made_up_config import make_config
from tests.unit.rewards.endpoint import Answer, Endpoint, completion, serve
from tests.unit.rewards.samples import make_sample

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def ask(
    url: str, responses: Sequence[str] = ("r",), **changes: Any
) -> tuple[list[RewardResult], dict[str, float]]:
    """Outcomes of responses judged at the same time, and the counters."""
    fields = {
        "judge_url": url,
        "judge_model": "m",
        "judge_api_key_variable": "MY_KEY",
        "judge_retries": 0,
        "judge_timeout": 20.0,
        **changes,
    }

    async def run() -> tuple[list[RewardResult], dict[str, float]]:
        judge = Judge(make_config(**fields).reward)
        samples = [make_sample(response, k) for k, response in enumerate(responses)]
        outcomes = await asyncio.gather(*map(judge.score, samples))
        await judge.close()
        return list(outcomes), judge.pop_counters()

    return asyncio.run(run())


def test_scores_and_counters() -> None:
    def answer(prompt: str, number: int) -> str:
        return "Score: 1" if "good" in prompt else "Wrong.\nScore: 0.25"

    with serve(answer) as endpoint:
        outcomes, counts = ask(
            endpoint.url,
            ["<answer>good</answer>", "bad"],
            judge_price_per_million_input_tokens=2.0,
            judge_price_per_million_output_tokens=30.0,
        )
    assert outcomes == [RewardResult(1.0), RewardResult(0.25)]
    assert counts == {
        "judge/requests": 2.0,
        "judge/input_tokens": 200.0,
        "judge/output_tokens": 20.0,
        "judge/cost": pytest.approx((200 * 2 + 20 * 30) / 1e6),
        "judge/cache_hits": 0.0,
        "judge/failures": 0.0,
    }
    assert endpoint.keys == [f"Bearer {KEY}"] * 2
    assert endpoint.bodies[0]["model"] == "m" and endpoint.bodies[0]["temperature"] == 0.0


def test_the_temperature_may_be_left_to_the_endpoint() -> None:
    with serve(lambda *_: "1") as endpoint:
        ask(endpoint.url, judge_temperature=None)
    assert "temperature" not in endpoint.bodies[0]


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Q {question} A {answer} R {response}")
    with serve(lambda *_: "1") as endpoint:
        ask(endpoint.url, judge_prompt=str(path))
    assert endpoint.bodies[0]["messages"] == [{"role": "user", "content": "Q q? A B R r"}]


# ---- Failures ----


def failed(answer: Answer, seconds: float = 0.0, **changes: Any) -> tuple[RewardResult, Endpoint]:
    with serve(answer, seconds) as endpoint:
        (outcome,), counts = ask(endpoint.url, **changes)
    assert outcome.score is None
    assert counts["judge/failures"] == 1
    assert counts["judge/requests"] == len(endpoint.bodies)
    return outcome, endpoint


def test_down() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    (outcome,), counts = ask(url, judge_retries=1)
    assert "APIConnectionError" in str(outcome.error)
    assert not outcome.timed_out
    assert (counts["judge/failures"], counts["judge/requests"]) == (1, 2)


def test_slow() -> None:
    outcome, _ = failed(lambda *_: "1", seconds=5.0, judge_timeout=0.5)
    assert outcome == RewardResult.failure("did not answer within 0.5 s", timed_out=True)


def test_the_deadline_is_over_all_tries() -> None:
    outcome, endpoint = failed(lambda *_: 503, judge_retries=1000, judge_timeout=5.0)
    assert outcome.timed_out
    assert 2 <= len(endpoint.bodies) < 10


@pytest.mark.parametrize("status", [429, 500, 503])
def test_tries_again(status: int) -> None:
    with serve(lambda _, number: status if number < 2 else "Score: 1") as endpoint:
        (outcome,), counts = ask(endpoint.url, judge_retries=3)
    assert outcome == RewardResult(1.0)
    assert counts["judge/requests"] == 3 and counts["judge/failures"] == 0


def test_gives_up() -> None:
    outcome, endpoint = failed(lambda *_: 500, judge_retries=1)
    assert "500" in str(outcome.error)
    assert len(endpoint.bodies) == 2


@pytest.mark.parametrize("status", [400, 401, 404])
def test_does_not_repeat_what_will_not_help(status: int) -> None:
    outcome, endpoint = failed(lambda *_: status, judge_retries=3)
    assert str(status) in str(outcome.error)
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    "answer",
    [
        *("I would rather not.", "Score: 12", "", None, ["x"], {"a": 1}),
        *(b"<html>busy</html>", b"{}", b"null", b"[]", b'{"choices": []}', b""),
        *(b'{"choices": [{"message": null}]}', completion(5).replace(b"100", b'"many"')),
    ],
    ids=lambda answer: str(answer)[:20],
)
def test_nonsense(answer: Any) -> None:
    failed(lambda *_: answer)


def test_a_failure_costs_its_own_sample() -> None:
    def answer(prompt: str, number: int) -> Any:
        return "what?" if "bad" in prompt else "1"

    with serve(answer) as endpoint:
        outcomes, _ = ask(endpoint.url, ["a", "bad", "c"])
    assert [outcome.score for outcome in outcomes] == [1.0, None, 1.0]


# ---- Bounds and caches ----


def test_at_most_so_many_requests_at_a_time() -> None:
    with serve(lambda *_: "1", seconds=0.1) as endpoint:
        outcomes, _ = ask(endpoint.url, [str(k) for k in range(12)], judge_concurrency=3)
    assert len(endpoint.bodies) == 12 and all(outcome.score == 1.0 for outcome in outcomes)
    assert endpoint.most_at_once == 3


def test_the_same_question_is_asked_once() -> None:
    with serve(lambda *_: "1", seconds=0.1) as endpoint:
        outcomes, counts = ask(endpoint.url, ["a", "a", "b", "<think>x</think>a"])
    assert outcomes == [RewardResult(1.0)] * 4
    assert len(endpoint.bodies) == 2
    assert counts["judge/cache_hits"] == 2


def test_a_failure_is_not_remembered() -> None:
    async def run(url: str) -> list[RewardResult]:
        config = make_config(judge_url=url, judge_model="m", judge_retries=0)
        judge = Judge(config.reward)
        outcomes = [await judge.score(make_sample()) for _ in range(3)]
        await judge.close()
        return outcomes

    with serve(lambda _, number: "what?" if number == 0 else "1") as endpoint:
        outcomes = asyncio.run(run(endpoint.url))
    assert [outcome.score for outcome in outcomes] == [None, 1.0, 1.0]
    assert len(endpoint.bodies) == 2


def test_what_nobody_waits_for_any_more_is_not_asked() -> None:
    """Else a slow endpoint would spend the next step on the questions of the last one."""

    async def run(url: str) -> RewardResult:
        fields = {"judge_url": url, "judge_model": "m", "judge_concurrency": 1}
        judge = Judge(make_config(**fields).reward)
        late = [asyncio.create_task(judge.score(make_sample(text))) for text in "abc"]
        while not endpoint.bodies:
            await asyncio.sleep(0.01)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        outcome = await judge.score(make_sample("b"))
        await judge.close()
        return outcome

    with serve(lambda *_: "1", seconds=0.3) as endpoint:
        assert asyncio.run(run(endpoint.url)) == RewardResult(1.0)
    asked = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert len(asked) == 2 and "a" in asked[0] and "\nb\n" in asked[1]


def test_judgements_outlive_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with serve(lambda *_: "Score: 0.5") as endpoint:
        for _ in range(2):
            outcomes, counts = ask(endpoint.url, ["a", "b"], judge_cache=str(folder))
            assert outcomes == [RewardResult(0.5)] * 2
        assert counts["judge/cache_hits"] == 2 and len(endpoint.bodies) == 2
        files = list(folder.rglob("*"))
        (file, _) = sorted(path for path in files if path.is_file())
        assert json.loads(file.read_text()) == {"score": 0.5, "model": "m", "reply": "Score: 0.5"}
        # Another model, another judgement; and a file that someone broke is asked for again.
        ask(endpoint.url, ["a"], judge_cache=str(folder), judge_model="n")
        assert len(endpoint.bodies) == 3
        file.write_text('{"sco')
        assert ask(endpoint.url, ["a", "b"], judge_cache=str(folder))[0] == [RewardResult(0.5)] * 2
        assert len(endpoint.bodies) == 4


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    with serve(lambda *_: "what?") as endpoint:
        ask(endpoint.url, judge_cache=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_costs_no_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with serve(lambda *_: "1") as endpoint:
        (outcome,), _ = ask(endpoint.url, judge_cache=str(tmp_path / "file"))
    assert outcome == RewardResult(1.0)
    assert "--judge-cache: a judgement could not be kept" in caplog.text


# ---- The key ----


@pytest.mark.parametrize("answer", ["1", 401, 500, "what?", b"junk"])
def test_the_key_is_in_no_log_and_no_message(
    answer: Any,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with caplog.at_level(logging.DEBUG), serve(lambda *_: answer) as endpoint:
        (outcome,), _ = ask(endpoint.url, judge_cache=str(tmp_path))
    assert endpoint.keys == [f"Bearer {KEY}"]
    printed = capfd.readouterr()
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    for text in (caplog.text, str(outcome), printed.out, printed.err, kept):
        assert KEY not in text


def test_an_endpoint_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY")
    with serve(lambda *_: "1") as endpoint:
        assert ask(endpoint.url)[0] == [RewardResult(1.0)]
    assert endpoint.keys == ["Bearer none"]


def test_a_key_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    with serve(lambda *_: "1") as endpoint:
        assert ask(endpoint.url)[0] == [RewardResult(1.0)]
    assert endpoint.keys == [f"Bearer {KEY}"]
