"""Two ranks, one engine: truncated sampling and what its log-probabilities mean; stop strings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.experience.rollouts import Rollout, RolloutRequest
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rollout.vllm.engine import VllmEngine
from tests.distributed.tiny_engine import (
    MEDIA,
    PROMPTS,
    REQUESTS,
    model,
    parallel,
    reference_logprobs,
    tokens,
)
from tests.runner.tiers import full_only
from tests.tiny_served import model_settings

HERE = "tests/distributed/test_vllm_sampling.py::"
GROUPS_OUTLIVE_TESTS = True
END = 299
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Letters:
    """Two letters a token, so that a stop string can begin and end within tokens; some tokens are
    half a character, as bytes are."""

    eos_id = END
    end_ids = (END,)

    def decode(self, ids: list[int]) -> str:
        data = b"".join(self.piece(token) for token in ids)
        return data.decode(errors="replace")

    @staticmethod
    def piece(token: int) -> bytes:
        if token % 5 == 0:
            return "é".encode()[:1]
        if token % 5 == 1:
            return "é".encode()[1:]
        return (LETTERS[token % 26] + LETTERS[token // 26]).encode()


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    built: list[VllmEngine] = []
    yield cast(VllmEngine, built)
    for one in built:
        one.close()


@pytest.fixture(autouse=True)
def started(world: None, engine: Any) -> VllmEngine:
    """The one engine of the file, made when torch.distributed is there."""
    if not engine:
        engine.append(
            VllmEngine(
                model_settings(memory_gib=0.02),
                cast(Tokenizer, Letters()),
                parallel(2),
                tensor_parallel_size=2,
            )
        )
        engine[0].update_weights(model(1).named_parameters(), version=1)
    return cast(VllmEngine, engine[0])


def kept(logprobs: Tensor, top_p: float, top_k: int, min_p: float) -> Tensor:
    """bool [R, vocabulary]: which tokens may be drawn, from log-probabilities at the temperature.

    vLLM's order: min-p, then the top k of what is left, then the nucleus of the renormalised rest.
    """
    p = logprobs.exp()
    p = torch.where(p >= min_p * p.amax(-1, keepdim=True), p, 0.0)
    largest, places = p.sort(dim=-1, descending=True)
    largest[:, top_k:] = 0.0
    largest /= largest.sum(-1, keepdim=True)
    before = largest.cumsum(-1) - largest
    allowed = (before < top_p + 1e-5) & (largest > 0)
    return torch.zeros_like(allowed).scatter(-1, places, allowed)


TRUNCATIONS: dict[str, dict[str, Any]] = {
    "top-p": {"top_p": 0.9},
    "top-k": {"top_k": 20},
    "min-p": {"min_p": 0.05},
    "all": {"top_p": 0.9, "top_k": 20, "min_p": 0.05},
}


@pytest.mark.parametrize(
    "kind",
    full_only(
        f"{HERE}test_truncation_chooses_tokens_and_leaves_their_log_probabilities",
        TRUNCATIONS,
        ["all"],
    ),
)
def test_truncation_chooses_tokens_and_leaves_their_log_probabilities(
    started: VllmEngine, kind: str
) -> None:
    truncation = TRUNCATIONS[kind]
    settings = SamplingSettings(n=6, max_tokens=12, temperature=0.7, seed=5, **truncation)
    reference, renormalised = model(1), []
    for group in started.generate(REQUESTS, MEDIA, settings):
        for response in group.rollouts:
            raw = reference_logprobs(reference, group.prompt, response.token_ids)
            whole = (raw / 0.7).log_softmax(-1)
            chosen = response.token_ids[:, None]
            torch.testing.assert_close(
                response.logprobs, whole.gather(-1, chosen)[:, 0], atol=1e-4, rtol=0
            )
            allowed = kept(
                whole,
                settings.top_p,
                settings.top_k if settings.top_k > 0 else whole.shape[1],
                settings.min_p,
            )
            assert allowed.gather(-1, chosen).all()
            renormalised.append(-(whole.exp() * allowed).sum(-1).log())
    # What the renormalised distribution would have added to each: the test would see it.
    assert torch.cat(renormalised).max() > 0.02


def test_truncation_is_needed_for_these_tokens(started: VllmEngine) -> None:
    """Without it some of the same draws leave the truncated set."""
    settings = SamplingSettings(n=6, max_tokens=12, temperature=0.7, seed=5)
    outside = 0
    for group in started.generate(REQUESTS, MEDIA, settings):
        for response in group.rollouts:
            raw = reference_logprobs(model(1), group.prompt, response.token_ids)
            allowed = kept((raw / 0.7).log_softmax(-1), 0.9, 20, 0.05)
            outside += int((~allowed.gather(-1, response.token_ids[:, None])).sum())
    assert outside > 0


def test_greedy_log_probabilities_are_of_the_logits(started: VllmEngine) -> None:
    settings = SamplingSettings(n=1, max_tokens=8, temperature=0.0, top_p=0.5, min_p=0.5)
    for group in started.generate(REQUESTS, MEDIA, settings):
        (response,) = group.rollouts
        raw = reference_logprobs(model(1), group.prompt, response.token_ids)
        assert response.token_ids.tolist() == raw.argmax(-1).tolist()
        torch.testing.assert_close(response.logprobs, raw.amax(-1), atol=1e-4, rtol=0)


# ---- Stop strings ----


def cut(response: Rollout, stops: tuple[str, ...]) -> list[int]:
    """The slow way: decode every prefix anew."""
    ids = response.token_ids.tolist()
    for length in range(1, len(ids) + 1):
        text = Letters().decode(ids[:length])
        if any(stop in text for stop in stops):
            return ids[:length]
    return ids


def some_text(texts: list[str], letter: str, width: int) -> str:
    """Characters with the letter among them, from behind the start of one of the texts."""
    for text in texts:
        for place in range(6, len(text) - 12):
            found = text[place : place + width]
            if letter in found[:2] and "\ufffd" not in found:
                return found
    raise AssertionError(f"no text has {letter}")


@pytest.mark.parametrize(
    "inside",
    full_only(
        f"{HERE}test_a_stop_string_ends_its_response_and_no_other",
        [pytest.param(False, id="at token borders"), pytest.param(True, id="across tokens")],
        ["across tokens"],
    ),
)
def test_a_stop_string_ends_its_response_and_no_other(started: VllmEngine, inside: bool) -> None:
    settings = SamplingSettings(n=4, max_tokens=30, seed=9)
    whole = started.generate(REQUESTS, MEDIA, settings)
    texts = [response.text for group in whole for response in group.rollouts]
    # From the midst of two responses, one with a character of two tokens.
    width = 4 if inside else 2
    stops = (some_text(texts, "é", width), some_text(texts, "k", width))
    told: list[tuple[str, int, str]] = []
    stopped = started.generate(
        REQUESTS,
        MEDIA,
        SamplingSettings(n=4, max_tokens=30, seed=9, stop_strings=stops),
        lambda prompt, rollout, n: told.append((prompt.uid, rollout.index, rollout.reward_text)),
    )
    ended = 0
    for before, after in zip(whole, stopped, strict=True):
        for full, short in zip(before.rollouts, after.rollouts, strict=True):
            expected = cut(full, stops)
            assert short.token_ids.tolist() == expected
            assert short.text == Letters().decode(expected)
            torch.testing.assert_close(
                short.logprobs, full.logprobs[: len(expected)], atol=1e-5, rtol=0
            )
            is_cut = len(expected) < len(full.token_ids)
            assert short.finish_reason == ("stop" if is_cut else full.finish_reason)
            ended += is_cut
    assert 1 <= ended < 4 * len(PROMPTS), "some must end, and some must not"
    gloo_group = started.gloo_group
    assert len(set(map(str, gather_objects(gloo_group, tokens(stopped))))) == 1
    (leader,) = [part for part in gather_objects(gloo_group, told) if part]
    assert sorted(leader) == sorted(
        (group.prompt.uid, index, response.reward_text)
        for group in stopped
        for index, response in enumerate(group.rollouts)
    )
    # Nothing is left behind in the engine.
    assert tokens(started.generate(REQUESTS, MEDIA, settings)) == tokens(whole)


def test_a_stop_string_may_begin_in_an_earlier_part(started: VllmEngine) -> None:
    """Partial rollouts, greedy, so that what follows does not hang on where a part ended."""
    greedy = SamplingSettings(n=1, max_tokens=30, temperature=0.0)
    whole = [group.rollouts[0] for group in started.generate(REQUESTS, MEDIA, greedy)]
    borders = [len(Letters().decode(response.token_ids[:7].tolist())) for response in whole]
    pairs = [r.text[end - 1 : end + 1] for r, end in zip(whole, borders, strict=True)]
    crosses = next(pair for pair in pairs if set(pair) <= set(LETTERS))
    settings = replace(greedy, stop_strings=(crosses,))
    groups = started.generate(REQUESTS, MEDIA, replace(settings, new_tokens=7))
    for _ in range(10):
        requests = [RolloutRequest(g.group_id, g.prompt, tuple(g.rollouts)) for g in groups]
        groups = started.generate(requests, MEDIA, replace(settings, new_tokens=7))
    for full, group in zip(whole, groups, strict=True):
        assert group.is_complete
        assert group.rollouts[0].token_ids.tolist() == cut(full, (crosses,))
    crossed = groups[pairs.index(crosses)].rollouts[0]
    assert crossed.finish_reason == "stop" and len(crossed.token_ids) <= 8


def test_the_end_of_turn_still_ends_a_response(
    started: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SamplingSettings(n=1, max_tokens=20, seed=1)
    (whole,) = started.generate(REQUESTS[:1], MEDIA, settings)[0].rollouts
    end = int(whole.token_ids[9])
    monkeypatch.setattr(started.tokenizer, "end_ids", (299, end), raising=False)
    never = SamplingSettings(n=1, max_tokens=20, seed=1, stop_strings=("never",))
    (stopped,) = started.generate(REQUESTS[:1], MEDIA, never)[0].rollouts
    length = whole.token_ids.tolist().index(end) + 1
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids.tolist() == whole.token_ids[:length].tolist()
    assert len(stopped.logprobs) == length
    assert stopped.seconds > 0


def test_a_response_without_its_stop_string_is_cut_at_its_length(started: VllmEngine) -> None:
    never = SamplingSettings(n=2, max_tokens=7, seed=1, stop_strings=("no such text",))
    for response in started.generate(REQUESTS[:2], MEDIA, never)[1].rollouts:
        assert response.finish_reason == "length" and len(response.token_ids) == 7
