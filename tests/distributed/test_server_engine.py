"""Two ranks: a server beside the trainer answers as the engine within it does, and is not missed
for long when it dies."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer as Vocabulary
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.server import client as server_client
from megatron_longrl.rollout.server.client import ServerClient
from megatron_longrl.rollout.server.engine import ServerEngine
from megatron_longrl.rollout.server.guard import TOKEN_VARIABLE
from megatron_longrl.rollout.vllm.engine import VllmEngine
from megatron_longrl.rollout.weights.receiver import WeightIterator
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
from tests.server_attacks.__main__ import Counts, attack
from tests.server_attacks.target import Target
from tests.tiny_served import HF_CONFIG, model_settings

GROUPS_OUTLIVE_TESTS = True
KILLED = (
    "tests/distributed/test_server_engine.py::"
    "test_a_server_that_is_killed_when_the_weights_are_others_already"
)
"""Each server that dies costs the start of another one."""
GREEDY = SamplingSettings(n=1, max_tokens=20, temperature=0.0)
# 56 responses, of which a server generates 32 at a time.
SAMPLED = SamplingSettings(n=8, max_tokens=30, temperature=0.8, top_p=0.9, seed=7, step=3)
STOPPED = replace(SAMPLED, stop_strings=("9 1",))
SHM = "/dev/shm/"
BUCKET = 160 << 10
"""The embedding table, the largest layer, has 150 KiB."""


def live(module: nn.Module) -> WeightIterator:
    return WeightIterator(lambda: iter(list(module.named_parameters())))


def told(groups: list[RolloutGroup]) -> list[list[tuple[Any, ...]]]:
    """All that is said of responses but log-probabilities."""
    return [
        [(r.token_ids.tolist(), r.text, r.finish_reason, r.weight_version) for r in group.rollouts]
        for group in groups
    ]


def same(groups: list[RolloutGroup], others: list[RolloutGroup], rounding: float = 1e-5) -> None:
    """Equal tokens, texts, reasons and versions; log-probabilities up to rounding."""
    assert told(groups) == told(others)
    for group, other in zip(groups, others, strict=True):
        for one, two in zip(group.rollouts, other.rollouts, strict=True):
            torch.testing.assert_close(one.logprobs, two.logprobs, atol=rounding, rtol=0)


def history(engine: RolloutEngine) -> list[list[RolloutGroup]]:
    """Responses before and after updates."""
    rounds = []
    for version, seed in enumerate((1, 2, 1)):
        engine.update_weights(live(model(seed)), 10 + version)
        rounds += [engine.generate(REQUESTS, MEDIA, how) for how in (GREEDY, SAMPLED, STOPPED)]
    return rounds


class WordsOnDisk(Words):
    """With the same tokenizer in files, for the server."""

    def __init__(self, folder: Path) -> None:
        words = Vocabulary(WordLevel({str(i): i for i in range(HF_CONFIG["vocab_size"])}))
        PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token=str(self.eos_id), pad_token=str(self.eos_id)
        ).save_pretrained(folder)
        self.origin = ("HuggingFaceTokenizer", str(folder))


OPEN: list[tuple[ServerEngine, ParallelGroups, list[list[RolloutGroup]]]] = []
"""The engine of all tests, and what the colocated engine answered before it."""


@pytest.fixture(scope="module", autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop()[0].close()


@pytest.fixture
def engine(world: None, tmp_path: Path) -> ServerEngine:
    """With the weights of seed 1 as version 1."""
    if not OPEN:
        groups = parallel(dist.get_world_size())
        tokenizer = cast(Tokenizer, WordsOnDisk(tmp_path))
        colocated = VllmEngine(model_settings(), tokenizer, groups, tensor_parallel_size=1)
        answers = history(colocated)
        colocated.close()
        engine = ServerEngine(
            model_settings(), tokenizer, groups, bucket_bytes=BUCKET, timeout_seconds=120
        )
        OPEN.append((engine, groups, answers))
    engine = OPEN[0][0]
    engine.update_weights(live(model(1)), 1)
    return engine


def groups_of_test() -> ParallelGroups:
    return OPEN[0][1]


def server_pid(engine: ServerEngine) -> int:
    assert engine._process is not None and engine._process.pid is not None
    return engine._process.pid


def is_leader() -> bool:
    return dist.get_rank() == 0


@pytest.mark.patience(2)
def test_responses_are_those_of_the_colocated_engine_before_and_after_updates(
    engine: ServerEngine,
) -> None:
    for mine, expected in zip(history(engine), OPEN[0][2], strict=True):
        same(mine, expected)
    everyone = gather_objects(groups_of_test().replica_gloo_group, told(mine))
    assert all(other == everyone[0] for other in everyone), "every rank has the responses"
    assert engine.recoveries == 0


def test_layers_that_have_not_changed_stay_where_they_are(engine: ServerEngine) -> None:
    resets = engine.stats.cache_resets
    engine.update_weights(live(model(1)), 2)
    assert engine.last_update.names == [], "nothing has changed"
    assert engine.stats.cache_resets == resets, "and the server keeps what it knows of prompts"
    assert told(engine.generate(REQUESTS, MEDIA, GREEDY))[0][0][3] == 2

    changed = model(1)
    with torch.no_grad():
        changed.model.layers[1].self_attn.k_proj.weight.mul_(-1.5)
        changed.model.norm.weight.mul_(0.9)
    engine.update_weights(live(changed), 3)
    moved = gather_objects(groups_of_test().replica_gloo_group, engine.last_update.names)[0]
    heads = [
        f"model.layers.1.self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")
    ]
    assert moved == [*heads, "model.norm.weight"], "vLLM holds q, k and v as one"
    assert engine.stats.cache_resets == resets + 1
    for group in engine.generate(REQUESTS, MEDIA, GREEDY):
        (response,) = group.rollouts
        expected = reference_logprobs(changed, group.prompt, response.token_ids)
        assert response.token_ids.tolist() == expected.argmax(-1).tolist()
        assert response.weight_version == 3
    different = told(engine.generate(REQUESTS, MEDIA, SAMPLED))
    engine.update_weights(live(model(1)), 4)
    assert told(engine.generate(REQUESTS, MEDIA, SAMPLED)) != different


def shared_bytes() -> int:
    """Anonymous shared memory that this process holds."""
    sizes = {}
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and os.readlink(entry).startswith("/memfd:megatron_longrl"):
            status = entry.stat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def test_weights_go_through_one_bucket(
    engine: ServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    send = ServerClient.update_weights

    def update_weights(self: ServerClient, info: dict[str, Any]) -> None:
        held.append(shared_bytes())
        send(self, info)

    monkeypatch.setattr(ServerClient, "update_weights", update_weights)
    engine.update_weights(live(model(2)), 2)
    if is_leader():
        assert engine.last_update.buckets == len(held) > 3
        assert set(held) == {BUCKET}
        norms = "norm.weight"  # ones in both models
        size = sum(p.numel() * 4 for n, p in model(2).named_parameters() if not n.endswith(norms))
        assert engine.last_update.nbytes == size > 4 * BUCKET


@pytest.mark.parametrize("n", [1, 4])
def test_prompts_are_put_together_where_the_server_reads_them(
    engine: ServerEngine, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    generate = ServerClient.generate

    def note(self: ServerClient, memory: SharedMemory) -> Any:
        held.append(shared_bytes() - BUCKET)
        return generate(self, memory)

    monkeypatch.setattr(ServerClient, "generate", note)
    before = engine.stats
    engine.generate(REQUESTS, MEDIA, replace(SAMPLED, n=n))
    now = engine.stats
    if is_leader():
        size = sum(len(prompt.token_ids) for prompt in PROMPTS) * HF_CONFIG["hidden_size"] * 4
        assert now.prompts - before.prompts == len(PROMPTS)
        assert now.prompt_bytes - before.prompt_bytes == size, "one copy, whatever n is"
        assert len(held) == 1 and size < held[0] < size + 4096, "a header and no more"
        assert shared_bytes() == BUCKET, "which is given back"
    else:
        assert now == before


@pytest.mark.full(KILLED)
def test_a_server_that_could_not_be_told_to_forget(engine: ServerEngine) -> None:
    expected, recoveries = told(engine.generate(REQUESTS, MEDIA, SAMPLED)), engine.recoveries
    if is_leader():
        os.kill(server_pid(engine), signal.SIGKILL)
    resets = engine.stats.cache_resets
    engine.reset_prefix_cache()
    assert engine.stats.cache_resets == resets + 1
    assert engine.recoveries == recoveries + 1
    assert told(engine.generate(REQUESTS, MEDIA, SAMPLED)) == expected
    assert engine.recoveries == recoveries + 1


@pytest.mark.full(KILLED)
def test_a_server_that_is_killed_while_it_generates(
    engine: ServerEngine, caplog: pytest.LogCaptureFixture
) -> None:
    expected = engine.generate(REQUESTS, MEDIA, SAMPLED)
    before, pid = engine.recoveries, server_pid(engine) if is_leader() else None
    seen: list[tuple[str, int, str]] = []

    def kill_at_once(prompt: Any, rollout: Rollout, n: int) -> None:
        seen.append((prompt.uid, rollout.index, rollout.reward_text))
        if len(seen) == 1:
            os.kill(server_pid(engine), signal.SIGKILL)

    with caplog.at_level(logging.WARNING):
        answers = engine.generate(REQUESTS, MEDIA, SAMPLED, kill_at_once)
    same(answers, expected)
    assert engine.recoveries == before + 1
    if is_leader():
        assert server_pid(engine) != pid
        assert f"process {pid} ended with signal SIGKILL" in caplog.text
        told_once = [
            (group.prompt.uid, index, response.reward_text)
            for group in answers
            for index, response in enumerate(group.rollouts)
        ]
        assert sorted(seen) == sorted(told_once)
    assert told(engine.generate(REQUESTS, MEDIA, SAMPLED)) == told(expected)


def test_a_generation_goes_on_beside_the_trainer(engine: ServerEngine) -> None:
    expected = engine.generate(REQUESTS, MEDIA, SAMPLED)
    assert engine.runs_beside
    same(engine.start(REQUESTS, MEDIA, SAMPLED).wait(1), expected)
    with pytest.raises(UserError, match="exceed the rollout engine's 128"):
        engine.start(REQUESTS, MEDIA, SamplingSettings(n=1, max_tokens=100))
    same(engine.generate(REQUESTS, MEDIA, SAMPLED), expected)


def test_a_server_that_is_killed_when_the_weights_are_others_already(engine: ServerEngine) -> None:
    """What had come is of the weights before the update, the rest of those after it."""
    modules, before = [model(1)], engine.recoveries
    engine.update_weights(WeightIterator(lambda: iter(list(modules[-1].named_parameters()))), 1)
    texts: list[str] = []
    killed = threading.Event()

    def kill_at_once(prompt: Any, rollout: Rollout, n: int) -> None:
        texts.append(rollout.text)
        if len(texts) == 1:
            os.kill(server_pid(engine), signal.SIGKILL)
            killed.set()

    pending = engine.start(REQUESTS, MEDIA, SAMPLED, kill_at_once)
    if is_leader():
        assert killed.wait(60)
    dist.barrier()
    modules.append(model(2))
    groups = pending.wait(2)
    assert engine.recoveries == before + 1 and engine.weight_version == 2
    assert len(groups) == len(PROMPTS) and len(texts) in (0, 8 * len(PROMPTS))
    versions = set()
    for group in groups:
        assert group.inputs is not None and group.inputs.weight_version == 2
        for response in group.rollouts:
            versions.add(response.weight_version)
            drawn_by = modules[response.weight_version - 1]
            raw = reference_logprobs(drawn_by, group.prompt, response.token_ids)
            logprobs = (raw / 0.8).log_softmax(-1).gather(-1, response.token_ids[:, None])[:, 0]
            torch.testing.assert_close(response.logprobs, logprobs, atol=1e-4, rtol=0)
    assert versions == {1, 2}
    engine.update_weights(live(model(2)), 2)
    assert engine.last_update.names == [], "it has them already"


@pytest.mark.full(KILLED)
def test_a_server_that_is_killed_while_it_gets_weights(engine: ServerEngine) -> None:
    module, before = model(2), engine.recoveries
    streams: list[int] = []

    def stream() -> Iterator[tuple[str, Tensor]]:
        streams.append(0)
        for name, parameter in module.named_parameters():
            if len(streams) == 1 and name == "model.norm.weight" and is_leader():
                os.kill(server_pid(engine), signal.SIGKILL)
            streams[-1] += 1
            yield name, parameter

    engine.update_weights(WeightIterator(stream), 8)
    assert engine.recoveries == before + 1
    assert streams == [len(list(module.parameters()))] * 2, "every rank takes all of each stream"
    for group in engine.generate(REQUESTS, MEDIA, GREEDY):
        (response,) = group.rollouts
        expected = reference_logprobs(module, group.prompt, response.token_ids)
        assert response.token_ids.tolist() == expected.argmax(-1).tolist()


@pytest.mark.full("tests/distributed/test_server_engine.py::test_a_generation_that_takes_too_long")
def test_a_server_that_does_not_answer(
    engine: ServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(engine.generate(REQUESTS, MEDIA, SAMPLED))
    if is_leader():
        monkeypatch.setattr(engine._client, "_seconds", 1.5)
        os.kill(server_pid(engine), signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match=r"has not answered for 1\.5 s.*--rollout-timeout"):
            engine.generate(REQUESTS, MEDIA, SAMPLED)
        with pytest.raises(UserError, match=r"has not answered for 1\.5 s"):
            engine.update_weights(live(model(2)), 2)
    finally:
        if is_leader():
            os.kill(server_pid(engine), signal.SIGCONT)
    monkeypatch.undo()
    engine.update_weights(live(model(1)), 1)
    assert told(engine.generate(REQUESTS, MEDIA, SAMPLED)) == expected


def test_a_generation_that_takes_too_long(
    engine: ServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_leader():
        monkeypatch.setattr(engine._client, "_seconds", 0.15)
    with pytest.raises(UserError, match=r"did not end within 0\.15 s .*raise --rollout-timeout"):
        engine.generate(REQUESTS, MEDIA, SamplingSettings(n=16, max_tokens=50, stop=False))
    monkeypatch.undo()
    same(engine.generate(REQUESTS, MEDIA, GREEDY), engine.generate(REQUESTS, MEDIA, GREEDY))


def test_weights_of_somebody_else(engine: ServerEngine) -> None:
    expected, before = told(engine.generate(REQUESTS, MEDIA, SAMPLED)), engine.recoveries
    if is_leader():
        assert engine._client is not None
        engine._client.finish_weight_update("another run:1")
    assert told(engine.generate(REQUESTS, MEDIA, SAMPLED)) == expected
    assert engine.recoveries == before + 1


def beside(engine: ServerEngine, **changes: Any) -> ServerEngine:
    """Another engine with the same server, by its address."""
    address = gather_objects(
        groups_of_test().replica_gloo_group, engine._client.address if engine._client else ""
    )[0]
    settings = changes.pop("settings", model_settings())
    tokenizer = cast(Tokenizer, Words())
    with pytest.MonkeyPatch.context() as patch:
        if engine._process is not None:
            patch.setenv(TOKEN_VARIABLE, engine._process.token)
        changes = {"addresses": [address], **changes}
        return ServerEngine(settings, tokenizer, groups_of_test(), **changes)


@pytest.mark.full("tests/distributed/test_rollout_parity.py::test_greedy_tokens_and_gap_in_fp32")
@pytest.mark.patience(2)
def test_a_server_on_two_ranks(engine: ServerEngine) -> None:
    """In processes of their own, to which vLLM passes prompts and calls."""
    settings = replace(model_settings(), tensor_parallel_size=2)
    tokenizer = cast(Tokenizer, Words())
    both = ServerEngine(
        settings, tokenizer, groups_of_test(), bucket_bytes=BUCKET, timeout_seconds=120
    )
    with closing(both):
        for seed in (1, 2):
            for each in (engine, both):
                each.update_weights(live(model(seed)), seed)
            for how in (GREEDY, SAMPLED):
                answers = engine.generate(REQUESTS, MEDIA, how)
                same(both.generate(REQUESTS, MEDIA, how), answers, rounding=1e-4)
        workers: list[psutil.Process] = []
        if is_leader():
            workers = psutil.Process(server_pid(both)).children(recursive=True)
            assert len(workers) >= 2
        shared = {Path(m.path) for worker in workers for m in worker.memory_maps() if SHM in m.path}
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert not [path for path in shared if path.exists()]


def test_a_server_by_its_address_without_shared_memory(
    engine: ServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(engine.generate(REQUESTS, MEDIA, SAMPLED))
    monkeypatch.setattr(ServerClient, "shares_memory", lambda self: False)
    other = beside(engine, bucket_bytes=BUCKET)
    other.update_weights(live(model(2)), 1)
    assert told(other.generate(REQUESTS, MEDIA, SAMPLED)) != expected
    with pytest.raises(UserError, match="works for another trainer: wait for the end of that run"):
        beside(engine)
    with pytest.raises(UserError, match="works for another trainer"):
        engine.update_weights(live(model(1)), 1)
    other.update_weights(live(model(1)), 1)
    assert told(other.generate(REQUESTS, MEDIA, SAMPLED)) == expected
    monkeypatch.undo()
    other.close()
    before = engine.recoveries
    assert told(engine.generate(REQUESTS, MEDIA, SAMPLED)) == expected, "it lives on"
    assert engine.recoveries == before + 1, "with weights of another run"


def test_a_server_bears_bad_requests(engine: ServerEngine) -> None:
    """A small part of ``python -m tests.server_attacks``, and the engine answers as before."""
    expected, before = told(engine.generate(REQUESTS, MEDIA, SAMPLED)), engine.recoveries
    if is_leader():
        assert engine._client is not None and engine._process is not None
        assert engine._process._log is not None
        target = Target(
            engine._client.address,
            engine._process.token,
            server_pid(engine),
            engine._process._log.fileno(),
            model_settings(),
        )
        # Elsewhere health is timed, not here.
        counts = Counts(100, 30, 20, slow=30, slow_seconds=0.5, health_seconds=60.0)
        for row in attack(target, 1, counts):
            assert not row.faults, row
    dist.barrier()
    assert told(engine.generate(REQUESTS, MEDIA, SAMPLED)) == expected
    assert engine.recoveries == before + 1, "as it had other weights"


def test_a_server_of_another_model_or_version(
    engine: ServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = model_settings(HF_CONFIG | {"intermediate_size": 64})
    with pytest.raises(UserError, match=r"another model.*intermediate_size 128 there, 64 here"):
        beside(engine, settings=narrow)
    monkeypatch.setattr(server_client, "versions", lambda: {"vllm": "0.99"})
    with pytest.raises(UserError, match=r"other versions .*vllm 0\.\d+\.\d+ there, 0\.99 here"):
        beside(engine)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no rollout server at 127\.0\.0\.1:9 for 1 s"):
        beside(engine, addresses=["127.0.0.1:9"], timeout_seconds=1)


def test_weights_that_are_wrong(engine: ServerEngine) -> None:
    expected = tokens(engine.generate(REQUESTS, MEDIA, GREEDY))
    named = list(model(1).named_parameters())
    with pytest.raises(UserError, match=r"1 weights did not reach.*model\.norm\.weight"):
        engine.update_weights([item for item in named if item[0] != "model.norm.weight"], 2)
    with pytest.raises(UserError, match=r"has no model\.unheard_of"):
        engine.update_weights([*named, ("model.unheard_of.weight", torch.zeros(1))], 2)
    with pytest.raises(TypeError, match="WeightIterator"):
        engine.update_weights(iter(named), 2)
    engine.update_weights(named, 3)
    assert tokens(engine.generate(REQUESTS, MEDIA, GREEDY)) == expected
