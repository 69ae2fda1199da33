"""Two ranks: vLLM agrees with Hugging Face's Qwen2, and with itself on every layout."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import Rollout
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.media import embedding_store
from megatron_longrl.media.embedding_store import open_store
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rollout.vllm.engine import VllmEngine
from megatron_longrl.rollout.vllm.limits import check_head_size
from tests.distributed.tiny_engine import (
    MEDIA,
    PROMPTS,
    REQUESTS,
    Words,
    model,
    parallel,
    reference_logprobs,
    tokens,
)
from tests.runner.tiers import full_only
from tests.tiny_served import HF_CONFIG, model_settings

GROUPS_OUTLIVE_TESTS = True
BLOCK_BYTES = 32 * 2 * 2 * 32 * 2 * 4  # tokens, layers, key/value heads, width, k and v, fp32

# Ranks per replica, ranks per engine, blocks of the key/value cache.
LAYOUTS = {
    "one engine of two ranks": (2, 2, 400),
    "two engines of one replica": (2, 1, 400),
    "two replicas": (1, None, 400),
    "two replicas, starved of memory": (1, None, 12),
}


def process_state() -> dict[str, Any]:
    """What training relies on and an engine must leave alone."""
    numpy_state: Any = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": numpy_state[1].tolist(),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "affinity": os.sched_getaffinity(0),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")},
    }


Layout = tuple[str, VllmEngine, ParallelGroups]
on_every_layout = pytest.mark.parametrize(
    "name",
    full_only(
        "tests/distributed/test_rollout_parity.py::test_text",
        LAYOUTS,
        ["one engine of two ranks", "two replicas, starved of memory"],
    ),
    ids=lambda name: name.replace(" ", "-"),
    scope="module",
)

OPEN: dict[str, tuple[VllmEngine, ParallelGroups]] = {}
"""The one engine of this process; starting it takes seconds, so the tests of a layout share it."""


@pytest.fixture(scope="module", autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    close_engine()


def mapped_by_ranks() -> set[str]:
    """vLLM's memory that ranks share, as this process maps it; a closed engine's stays mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line for line in lines if "cpushm" in line}


def close_engine() -> None:
    while OPEN:
        OPEN.popitem()[1][0].close()


@pytest.fixture
def layout(world: None, name: str) -> Layout:
    if name not in OPEN:
        close_engine()
        replica, engine_ranks, blocks = LAYOUTS[name]
        groups = parallel(replica)
        before, mapped_before = process_state(), mapped_by_ranks()
        engine = VllmEngine(
            model_settings(memory_gib=blocks * BLOCK_BYTES / 2**30),
            cast(Tokenizer, Words()),
            groups,
            tensor_parallel_size=engine_ranks,
        )
        OPEN[name] = engine, groups
        assert process_state() == before
        mapped = mapped_by_ranks() - mapped_before
        assert all(line.endswith("(deleted)") for line in mapped), "a crash would leave the file"
        # Without AVX-512 vLLM's ranks talk over gloo instead.
        has_shared_memory = hasattr(torch.ops._C, "init_shm_manager")
        assert bool(mapped) == (engine_ranks == 2 and has_shared_memory)
        engine.update_weights(model(1).named_parameters(), version=1)
    return (name, *OPEN[name])


@on_every_layout
def test_greedy_tokens_equal_hugging_faces_before_and_after_an_update(layout: Layout) -> None:
    _, engine, groups = layout
    for seed in (1, 2, 1):
        reference = model(seed)
        engine.update_weights(reference.named_parameters(), version=10 + seed)
        greedy = SamplingSettings(n=1, max_tokens=20, temperature=0.0)
        answers = engine.generate(REQUESTS, MEDIA, greedy)
        assert [group.prompt.uid for group in answers] == [prompt.uid for prompt in PROMPTS]
        for group in answers:
            (response,) = group.rollouts
            expected = reference_logprobs(reference, group.prompt, response.token_ids)
            assert response.token_ids.tolist() == expected.argmax(-1).tolist()
            assert response.weight_version == 10 + seed
            assert response.text == " ".join(map(str, response.token_ids.tolist()))
        assert len(set(map(str, gather_objects(groups.replica_gloo_group, tokens(answers))))) == 1
    engine.update_weights(model(1).named_parameters(), version=1)


@on_every_layout
def test_logprobs_equal_hugging_faces(layout: Layout) -> None:
    _, engine, _ = layout
    reference = model(1)
    for temperature in (1.0, 0.7):
        settings = SamplingSettings(n=3, max_tokens=12, temperature=temperature, seed=5)
        for group in engine.generate(REQUESTS, MEDIA, settings):
            for response in group.rollouts:
                raw = reference_logprobs(reference, group.prompt, response.token_ids)
                expected = (raw / temperature).log_softmax(-1)
                expected = expected.gather(-1, response.token_ids[:, None])[:, 0]
                assert response.logprobs.dtype == torch.float32
                torch.testing.assert_close(response.logprobs, expected, atol=1e-4, rtol=0)


SAMPLED: dict[str, Any] = {}


@on_every_layout
def test_samples_depend_on_seed_step_and_prompt_and_not_on_the_layout(layout: Layout) -> None:
    name, engine, _ = layout
    before = process_state()
    settings = SamplingSettings(n=4, max_tokens=30, seed=7, step=3)
    drawn = tokens(engine.generate(REQUESTS, MEDIA, settings))
    assert process_state() == before
    assert len({str(response) for group in drawn for response in group}) == 4 * len(PROMPTS)
    SAMPLED[name] = drawn
    for other, samples in SAMPLED.items():
        assert drawn == samples, f"{name} and {other} draw different tokens"
    shuffled = [REQUESTS[index] for index in (4, 0, 6)]
    assert tokens(engine.generate(shuffled, MEDIA, settings)) == [drawn[4], drawn[0], drawn[6]]
    for other_settings in (
        SamplingSettings(n=4, max_tokens=30, seed=7, step=4),
        SamplingSettings(n=4, max_tokens=30, seed=8, step=3),
        SamplingSettings(n=4, max_tokens=30),
    ):
        others = tokens(engine.generate(REQUESTS, MEDIA, other_settings))
        assert all(one != other for one, other in zip(drawn, others, strict=True))


@on_every_layout
def test_each_response_is_told_on_one_rank_while_others_are_generated(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine, groups = layout
    settings = SamplingSettings(n=3, max_tokens=40, seed=9)
    plain = engine.generate(REQUESTS, MEDIA, settings)
    # A common token as the end of a turn: responses differ in length.
    ids = [int(i) for group in plain for r in group.rollouts for i in r.token_ids[5:]]
    end = max(set(ids), key=ids.count)
    monkeypatch.setattr(engine.tokenizer, "end_ids", (end,), raising=False)
    told: list[tuple[str, int, str, int, int]] = []

    def tell(prompt: Prompt, rollout: Rollout, n: int) -> None:
        assert any(prompt is one for one in PROMPTS)
        running = engine._engine.get_num_unfinished_requests()
        told.append((prompt.uid, rollout.index, rollout.reward_text, n, running))

    answers = engine.generate(REQUESTS, MEDIA, settings, tell)
    everyone = [entry for part in gather_objects(groups.replica_gloo_group, told) for entry in part]
    assert sorted(entry[:4] for entry in everyone) == sorted(
        (group.prompt.uid, index, response.reward_text, 3)
        for group in answers
        for index, response in enumerate(group.rollouts)
    )
    assert max(entry[4] for entry in everyone) > 3, "told before the others are complete"
    assert tokens(engine.generate(REQUESTS, MEDIA, settings)) == tokens(answers)


@on_every_layout
def test_a_listener_that_raises_is_an_error_on_every_rank(layout: Layout) -> None:
    _, engine, groups = layout
    settings = SamplingSettings(n=2, max_tokens=20, seed=1)

    def tell(prompt: Prompt, rollout: Rollout, n: int) -> None:
        raise ValueError("cannot listen")

    with pytest.raises(UserError, match="cannot listen"):
        engine.generate(REQUESTS, MEDIA, settings, tell)
    fine = tokens(engine.generate(REQUESTS, MEDIA, settings))
    assert len(set(map(str, gather_objects(groups.replica_gloo_group, fine)))) == 1


@on_every_layout
def test_the_end_of_turn_token_belongs_to_the_response(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine, _ = layout
    settings = SamplingSettings(n=1, max_tokens=20, seed=1)
    (whole,) = engine.generate(REQUESTS[:1], MEDIA, settings)[0].rollouts
    assert whole.finish_reason == "length" and len(whole.token_ids) == 20
    end = int(whole.token_ids[9])
    monkeypatch.setattr(engine.tokenizer, "end_ids", (end,), raising=False)
    (stopped,) = engine.generate(REQUESTS[:1], MEDIA, settings)[0].rollouts
    length = whole.token_ids.tolist().index(end) + 1
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids.tolist() == whole.token_ids[:length].tolist()
    assert len(stopped.logprobs) == length


@on_every_layout
def test_failures_reach_every_rank_and_the_engine_survives(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine, groups = layout
    settings = SamplingSettings(n=2, max_tokens=40, seed=1)
    fine = tokens(engine.generate(REQUESTS, MEDIA, settings))
    last_rank = groups.replica_gloo_group.rank() == groups.replica_gloo_group.size() - 1
    with pytest.raises(UserError, match="KeyError"):
        engine.generate(REQUESTS[:2], {} if last_rank else MEDIA, settings)
    with pytest.raises(UserError, match=r"exceed the rollout engine's 128; raise --seq-length"):
        engine.generate(REQUESTS, MEDIA, SamplingSettings(n=1, max_tokens=60))
    broken = {key: value.clone().fill_(float("nan")) for key, value in MEDIA.items()}
    with pytest.raises(UserError, match="the embeddings are not finite; the weights of the policy"):
        engine.generate(REQUESTS, broken, settings)
    monkeypatch.setattr(engine, "timeout_seconds", 0.0)
    with pytest.raises(UserError, match="--rollout-timeout"):
        engine.generate(REQUESTS, MEDIA, settings)
    monkeypatch.undo()
    named = list(model(1).named_parameters())
    with pytest.raises(UserError, match=r"1 weights did not reach.*model\.norm\.weight"):
        engine.update_weights((item for item in named if item[0] != "model.norm.weight"), 2)
    with pytest.raises(UserError):
        engine.update_weights([*named, ("model.unheard_of.weight", torch.zeros(1))], 2)
    engine.update_weights(named, 3)
    assert tokens(engine.generate(REQUESTS, MEDIA, settings)) == fine


def test_a_size_that_does_not_fit_is_refused_on_all_ranks() -> None:
    close_engine()
    with pytest.raises(UserError, match="--rollout-tensor-parallel-size 2 does not fit"):
        VllmEngine(model_settings(), cast(Tokenizer, Words()), parallel(1), tensor_parallel_size=2)


def test_heads_wider_than_their_share_of_the_hidden_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"heads of 64 channels.*= 32: change --kv-channels"):
        check_head_size(
            {
                "model_type": "qwen2",
                "hidden_size": 64,
                "num_attention_heads": 2,
                "head_dim": 64,
            }
        )


def test_a_head_size_without_a_kernel_is_refused() -> None:
    close_engine()
    with pytest.raises(UserError, match=r"heads of 16 channels.*32, 64.*--num-attention-heads"):
        VllmEngine(
            model_settings(HF_CONFIG | {"num_attention_heads": 8}),
            cast(Tokenizer, Words()),
            parallel(1),
            tensor_parallel_size=1,
        )


def test_ranks_of_a_replica_share_one_copy_of_embeddings(
    shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_engine()
    groups = parallel(2)
    store = open_store(1 << 20, torch.bfloat16, groups.replica_gloo_group, root=shared_path)
    rank = dist.get_rank()
    shared = store.put({("video", "0"): torch.full((4, 8), 1.0 + rank).bfloat16()})["video", "0"]
    assert bool((shared == 1.0).all()), "the owner's values are everyone's"
    dist.barrier()
    if rank == 1:
        shared[0, 0] = 5.0
    dist.barrier()
    assert shared[0, 0] == 5.0
    assert len(list(store.directory.glob("*.bin"))) == 1

    if rank == 0:
        monkeypatch.setattr(embedding_store, "_write", lambda path, tensor: 1 / 0)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        store.put({("other", "0"): torch.zeros(4, 8, dtype=torch.bfloat16)})
    assert ("other", "0") not in store and store.bytes == 64
    dist.barrier()
    store.close()
    dist.barrier()
    assert not list(shared_path.iterdir())
