"""Credentials are found wherever they stand in a configuration, and nothing else is."""

from __future__ import annotations

import pytest

from megatron_longrl.config.secrets import filled_in, secret_line, secrets_in


@pytest.mark.parametrize(
    "values",
    [
        {"judge_url": "http://user:PASS@host/v1"},
        {"judge_url": "https://host/v1?api_key=abc"},
        {"judge_url": "https://host/v1?x=1&access-token=abc"},
        {"rollout_server_address": ["a:1", "http://u:p@b:2"]},
        {"reward_kwargs": {"api_key": "abc"}},
        {"reward_kwargs": {"OPENAI_API_KEY": "abc"}},
        {"reward_kwargs": {"password": "abc"}},
        {"reward_kwargs": {"db_passwd": "abc"}},
        {"reward_kwargs": {"auth": {"token": "abc"}}},
        {"reward_kwargs": {"endpoints": [{"secret": "abc"}]}},
        {"reward_kwargs": {"headers": {"Authorization": "Bearer abc"}}},
        {"reward_kwargs": {"url": "postgres://u:p@host/db"}},
        {"reward_kwargs": {"headers": {"X-Api-Key": "abc"}}},
        {"reward_kwargs": {"api-key": "abc"}},
        {"reward_kwargs": {"openai_key": "abc"}},
        {"reward_kwargs": {"api_tokens": ["abc"]}},
        {"reward_kwargs": {"pat": "abc"}},
        {"reward_kwargs": {"api_key": {"value": "abc"}}},
        {"reward_kwargs": {"password": 1234}},
        {"reward_kwargs": {"lines": ["Authorization: Bearer abc"]}},
        {"reward_kwargs": {"url": "https://host/#access_token=abc"}},
    ],
    ids=str,
)
def test_credentials(values):
    (name,) = secrets_in(values)
    assert "abc" not in secret_line(name) and "PASS" not in secret_line(name)
    assert name.partition(".")[0] in values


@pytest.mark.parametrize(
    "values",
    [
        {"judge_url": "http://localhost:8000/v1"},
        {"judge_url": "http://[::1]:8000/v1?model=a&max_tokens=7"},
        {"rollout_server_address": ["node7:8100"]},
        {"judge_api_key_variable": "OPENAI_API_KEY"},
        {"rollout_token_file": "/home/me/token"},
        {"tokenizer_model": "a/tokenizer.model", "rollout_stop": ["</answer>", "token"]},
        {"reward_kwargs": {"api_key": "${OPENAI_API_KEY}", "limit": 80, "max_tokens": "7"}},
        {"reward_kwargs": {"stop_token": "</answer>", "tokenizer": "x", "token_id": "7"}},
        {"reward_kwargs": {"author": "me", "monkey": "x", "secretary": "y", "password": ""}},
        {"reward_kwargs": {"pattern": "x", "keys": ["a"], "answer_key": "b", "tokens": [1, 2]}},
        {"reward_kwargs": {"at": "12:30@noon", "mail": "mailto:me@host"}},
        {"lr": 1e-5, "load": None, "freeze": True},
    ],
    ids=str,
)
def test_nothing_else(values):
    assert list(secrets_in(values)) == []


def test_references_are_filled_in(monkeypatch):
    monkeypatch.setenv("MINE", "abc")
    given = {"key": "${MINE}", "inner": [{"again": "${MINE}"}, 3], "text": "costs ${MINE}"}
    expected = {"key": "abc", "inner": [{"again": "abc"}, 3], "text": "costs ${MINE}"}
    assert filled_in(given) == expected
    monkeypatch.delenv("MINE")
    with pytest.raises(KeyError, match="MINE"):
        filled_in(given)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"accessToken": "abc"},
        {"clientSecret": "abc"},
        {"db_pwd": "abc"},
        {"url": "https://ghp_abc@example.com/x"},
        {"url": "https://example.com/x?se=1&sig=abc"},
        {"url": "https://example.com/x?X-Amz-Signature=abc"},
        {"url": "https://example.com/x?accessToken=abc"},
    ],
)
def test_other_spellings_of_credentials_are_found(kwargs: dict[str, str]) -> None:
    assert list(secrets_in({"reward_kwargs": kwargs})) == [f"reward_kwargs.{next(iter(kwargs))}"]


def test_ordinary_names_hold_no_credentials() -> None:
    kwargs = {"maxToken": "3", "eosTokenId": "3", "signal": "x", "url": "https://a.b/c@d?e=f"}
    assert list(secrets_in({"reward_kwargs": kwargs})) == []
