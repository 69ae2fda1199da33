"""Two ranks: embeddings are made once for each version of the encoder, read from a disk that the
ranks agree about, and copied once for each prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import load_hf_weights
from megatron_longrl.data.rows import load_rows
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import EngineStats, RolloutGroup, rollout_requests
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.media.disk_cache import EmbeddingDisk
from megatron_longrl.media.embedding_store import EmbeddingStore, open_store
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rl.weight_sync import WeightSync
from megatron_longrl.rollout.build import build_engine
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.vllm.engine import VllmEngine
from megatron_longrl.training import encoder_version
from megatron_longrl.training.encoder_version import EncoderVersion, fingerprint
from megatron_longrl.training.losses import rl_loss
from megatron_longrl.training.runtime import build_runtime
from tests.distributed.cases import CP2, TP2
from tests.distributed.families import run_config
from tests.distributed.runs import LAYOUTS
from tests.distributed.runs import Run as ModelRun
from tests.distributed.tiny_engine import MEDIA, PROMPTS, REQUESTS, Words, model, parallel, tokens
from tests.runner.tiers import full_only
from tests.tiny_served import HF_CONFIG, model_settings
from tests.unit.training.made_up import make_advantages, policy_batches

HERE = "tests/distributed/test_embeddings.py::"

GREEDY = SamplingSettings(n=1, max_tokens=5, temperature=0.0)
SAME = 1e-4
"""Largest difference of log-probabilities between two ways to compute them."""


# ---- Which weights an embedding comes from ----


def print_of(run: ModelRun, **changes: object) -> str:
    return fingerprint("encoder", run.model, run.config.replace(**changes), run.groups)


def test_the_fingerprint_is_the_same_in_every_layout() -> None:
    found = {layout: print_of(ModelRun(layout)) for layout in LAYOUTS}
    assert len(set(found.values())) == 1, found


def write_to(module: torch.nn.Module, name: str) -> None:
    """As a loaded checkpoint does."""
    with torch.no_grad():
        parameter = dict(module.named_parameters())[name]
        parameter[..., 0] += 1.0


@pytest.mark.parametrize("layout", ["cp2", "tp2 tower"])
def test_the_fingerprint_changes_with_whatever_makes_embeddings(layout: str) -> None:
    run = ModelRun(layout)
    encoder = run.model.encoders["encoder"].module
    first = print_of(run)
    write_to(
        run.model.policy.module,
        next(name for name, _ in run.model.policy.module.named_parameters()),
    )
    assert print_of(run) == first, "the language model makes none"
    assert print_of(run, seq_length=run.config.training.seq_length + 64) == first
    seen = {first}
    for changes in (
        {"bf16": True},
        {"vision_norm_epsilon": 1e-3},
        # The same weights, and another order of tokens.
        {"projector_type": "mlp_downsample_2x2_fix"},
    ):
        seen.add(print_of(run, **changes))
    for part in ("vision_tower", "projector"):
        names = [name for name, _ in encoder.named_parameters() if name.startswith(part)]
        write_to(encoder, names[-1])
        seen.add(print_of(run))
    assert len(seen) == 6


def test_adapters_of_the_tower_are_part_of_it() -> None:
    run = ModelRun("cp2", lora_rank=2, lora_parts=("vision_tower", "projector"))
    assert run.model.trained_encoders
    before = (print_of(run), run.model.encoder_version)
    for name, parameter in run.model.encoders["encoder"].module.named_parameters():
        if name.endswith((".lora.A", ".lora.B")):
            torch.nn.init.ones_(parameter)
    run.model.count_update()
    after = (print_of(run), run.model.encoder_version)
    assert before[0] != after[0] and before[1] != after[1]


def test_weights_are_read_again_when_any_rank_has_written_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, reads = ModelRun("cp2"), []

    def counted(*given: Any) -> str:
        reads.append(1)
        return fingerprint(*given)

    monkeypatch.setattr(encoder_version, "fingerprint", counted)
    version = EncoderVersion(run.model, run.config, run.groups, outlives_run=["encoder"])
    first = version("encoder")
    assert version("encoder") == first and len(reads) == 1
    name = next(name for name, _ in run.model.encoders["encoder"].module.named_parameters())
    if dist.get_rank() == 0:
        write_to(run.model.encoders["encoder"].module, name)
    assert version("encoder") != first and len(reads) == 2, "and the other rank waits for nobody"
    within = EncoderVersion(run.model, run.config, run.groups, outlives_run=[])
    assert within("encoder") == "encoder update 0" and len(reads) == 2


# ---- The disk ----


KEYS = [(name, "0") for name in "abcdef"]


def rows(name: str) -> Tensor:
    return torch.full((5, 8), float(ord(name))).bfloat16()


def store_at(
    memory: Path, disk: Path, budget: int = 1 << 20, groups: ParallelGroups | None = None
) -> EmbeddingStore:
    gloo_group = (groups or parallel(2)).replica_gloo_group
    return open_store(
        budget, torch.bfloat16, gloo_group, memory, disk_folder=disk, disk_bytes=1 << 20
    )


def wanted() -> dict[tuple[str, str], torch.Size]:
    return {key: rows(key[0]).shape for key in KEYS}


def fill(path: Path) -> None:
    store = store_at(path / "memory", path / "disk")
    store.put({key: rows(key[0]) for key in KEYS})
    dist.barrier()
    store.close()


@pytest.mark.parametrize("budget", [1 << 20, 200], ids=["all in memory", "two in memory"])
def test_embeddings_survive_the_job(shared_path: Path, budget: int) -> None:
    fill(shared_path)
    store = store_at(shared_path / "memory", shared_path / "disk", budget)
    assert all(store.get(key) is None for key in KEYS)
    found = store.load(wanted())
    assert {key[0] for key in found} == set("abcdef")
    for key, tensor in found.items():
        assert torch.equal(tensor, rows(key[0])), "also what has left memory already"
    assert store.hits_on_disk == len(KEYS) and len(store) == min(len(KEYS), budget // 80)
    dist.barrier()
    store.close()


def test_what_one_rank_does_not_find_nobody_takes(
    shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks encode the rest together: they must miss the same."""
    fill(shared_path)
    groups = parallel(2)
    store = store_at(shared_path / "memory", shared_path / "disk", groups=groups)
    assert store.disk is not None
    if dist.get_rank() == 1:  # looks for every other key, beginning with the second
        store.disk.path(KEYS[3]).unlink()
    dist.barrier()
    read = EmbeddingDisk.read

    def lose(self: EmbeddingDisk, key: tuple[str, str], target: Tensor) -> bool:
        """Found a moment ago, and gone."""
        return key != KEYS[1] and read(self, key, target)

    if dist.get_rank() == 1:
        monkeypatch.setattr(EmbeddingDisk, "read", lose)
    found = store.load(wanted())
    everyone = gather_objects(groups.gloo_group, (sorted(found), len(store), store.bytes))
    assert everyone == [([KEYS[k] for k in (0, 2, 4, 5)], 4, 4 * 80)] * 2
    monkeypatch.undo()
    assert set(store.put({key: rows(key[0]) for key in KEYS})) == set(KEYS)
    dist.barrier()
    assert all(key in store.disk for key in KEYS), "and is there again"
    store.close()


def test_a_folder_that_one_rank_cannot_use_is_an_error_on_all(shared_path: Path) -> None:
    (shared_path / "file").touch()
    place = shared_path / ("file" if dist.get_rank() else "disk")
    with pytest.raises(UserError, match=r"cannot keep embeddings in .*--embedding-cache-dir"):
        store_at(shared_path / "memory", place)


# ---- Prompts on their way to the engine ----


def memory_of(tensor: Tensor) -> tuple[str, str]:
    """Device and inode of what a tensor is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, device, inode, *_ = line.split()
        first, last = (int(part, 16) for part in span.split("-"))
        if first <= tensor.data_ptr() < last:
            return device, inode
    raise AssertionError("nowhere")


def moved(engine: RolloutEngine, before: EngineStats, groups: ParallelGroups) -> tuple[int, int]:
    """Prompts and bytes since then, over both ranks."""
    now = engine.stats
    mine = (now.prompts - before.prompts, now.prompt_bytes - before.prompt_bytes)
    everyone = gather_objects(groups.gloo_group, mine)
    return everyone[0][0] + everyone[1][0], everyone[0][1] + everyone[1][1]


@pytest.mark.parametrize(
    "size", full_only(f"{HERE}test_a_prompt_is_copied_once_whatever_n", [1, 2], [2])
)
def test_a_prompt_is_copied_once_whatever_n(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = parallel(2)
    engine = VllmEngine(
        model_settings(), cast(Tokenizer, Words()), groups, tensor_parallel_size=size
    )
    with closing(engine):
        engine.update_weights(model(1).named_parameters(), version=1)
        add, given = engine._engine.add_request, list[Tensor]()

        def note(name: str, prompt: Any, how: Any) -> str:
            given.append(prompt["prompt_embeds"])
            return str(add(name, prompt, how))

        monkeypatch.setattr(engine._engine, "add_request", note)
        bytes_of_all = sum(len(p.token_ids) for p in PROMPTS) * HF_CONFIG["hidden_size"] * 4
        for n in (1, 4):
            given.clear()
            before = engine.stats
            engine.generate(REQUESTS, MEDIA, SamplingSettings(n=n, max_tokens=4, seed=1))
            assert moved(engine, before, groups) == (len(PROMPTS), bytes_of_all)
            own = len(PROMPTS) if size == 2 else len({t.data_ptr() for t in given})
            assert len(given) == n * own, "each response is a request of its own"
            assert len({tensor.data_ptr() for tensor in given}) == own, "of the same memory"
            places = gather_objects(groups.gloo_group, {memory_of(tensor) for tensor in given})
            if size == 2:
                assert places[0] == places[1] and len(places[0]) == 1, "the ranks map one file"


# ---- The encoder and what the engine remembers ----


Answers = tuple[list[list[list[int]]], Tensor]
"""Tokens, and all their log-probabilities behind each other."""


def answers_of(groups: list[RolloutGroup]) -> Answers:
    logprobs = [response.logprobs for group in groups for response in group.rollouts]
    return tokens(groups), torch.cat(logprobs)


def distance(one: Answers, other: Answers) -> float:
    """Largest difference of log-probabilities; infinite where tokens differ."""
    return float((one[1] - other[1]).abs().max()) if one[0] == other[0] else float("inf")


class Run:
    """Qwen3-VL, whose DeepStack features vLLM's prefix cache does not know of; the language model
    is frozen."""

    def __init__(self, config: Config, checkpoint: Path) -> None:
        self.runtime = build_runtime(config, "rl")
        model = self.runtime.model
        load_hf_weights(checkpoint, model.modules, self.runtime.config, self.runtime.groups)
        for optimizer in model.optimizers.values():
            optimizer.reload_model_params()
        self.engine = self._engine()
        self.reference = self._engine(rollout_engine="megatron", rollout_tensor_parallel_size=None)
        self.reference.update_weights([], 0)  # which it has
        self.sync = WeightSync(self.runtime, self.engine)
        self.sync()
        rows = self.runtime.rows_of_replica(load_rows(config.data.train_data_path))
        self.prompts = self.runtime.build_prompts(rows)

    def _engine(self, **changes: object) -> RolloutEngine:
        runtime = self.runtime
        config = runtime.config.replace(**changes)
        return build_engine(config, runtime.tokenizer, runtime.groups, runtime.model.policy.module)

    def answers(self) -> tuple[Answers, int]:
        """Greedy ones, from the store; and frames that were encoded for them."""
        _, media = self.runtime.encode(self.prompts, for_training=False)
        found = answers_of(
            self.engine.generate(rollout_requests(self.prompts, "test"), media.embeddings, GREEDY)
        )
        encoded = gather_objects(self.runtime.groups.gloo_group, media.counts["frames"])
        return found, sum(encoded)

    def truth(self) -> Answers:
        """Greedy ones of the trained model itself, on frames that are encoded now."""
        specs = {spec.key(): spec for prompt in self.prompts for spec in prompt.media}
        media = self.runtime.train_step.media_encoder.encode(list(specs.values())).embeddings
        return answers_of(
            self.reference.generate(rollout_requests(self.prompts, "test"), media, GREEDY)
        )

    def train(self) -> None:
        """An update of tower and projector, DeepStack's included."""
        runtime = self.runtime
        _, media = runtime.encode(self.prompts, for_training=True)
        how = SamplingSettings(n=2, max_tokens=5, seed=1)
        groups = self.engine.generate(rollout_requests(self.prompts, "test"), media.embeddings, how)
        batches = policy_batches(groups, make_advantages(groups), runtime.config, runtime.groups)
        runtime.train_step.train(
            batches,
            media.embeddings,
            media.encoded,
            rl_loss(runtime.config.algorithm, runtime.config.rollout),
        )

    def change_deepstack(self) -> None:
        """An update of nothing but DeepStack's projectors: [P, h] of the prompts stays as it is."""
        encoder = self.runtime.model.encoders["encoder"]
        mergers = [p for name, p in encoder.named_parameters() if "deepstack" in name]
        assert mergers
        with torch.no_grad():
            for parameter in mergers:
                parameter.mul_(-1.5)
        self.runtime.model.count_update()


@pytest.fixture(
    params=full_only(
        f"{HERE}test_the_engine_answers_by_the_present_encoder_and_no_other",
        ["MR-SP2, an engine a rank", "TP2"],
        ["MR-SP2, an engine a rank"],
    )
)
def run(request: pytest.FixtureRequest, family_folder: Any) -> Iterator[Run]:
    folder = family_folder("qwen3_vl")
    layout = {
        "MR-SP2, an engine a rank": CP2 | {"rollout_tensor_parallel_size": 1},
        "TP2": TP2,
    }[request.param]
    options = {"rollout_max_tokens": 5, "rollout_memory_gib": 0.05, "lr": 0.02}
    run = Run(run_config(folder, freeze_language_model=True, **options | layout), folder / "hf")
    yield run
    run.engine.close()


def test_the_engine_answers_by_the_present_encoder_and_no_other(run: Run) -> None:
    last, encoded = run.answers()
    assert encoded > 0 and distance(last, run.truth()) < SAME
    start = run.engine.stats
    run.sync()
    again, frames = run.answers()
    assert frames == 0, "an epoch of an unchanged encoder encodes nothing"
    assert distance(again, last) < SAME
    assert run.engine.stats.cache_resets == start.cache_resets, "and the engine remembers"

    for number, change in enumerate((run.change_deepstack, run.train), start=1):
        change()
        run.sync()
        after, frames = run.answers()
        assert frames == encoded, "by the new encoder"
        assert distance(after, run.truth()) < SAME
        assert distance(after, last) > 10 * SAME, "else the test shows nothing"
        traffic = run.engine.stats
        assert traffic.cache_resets == start.cache_resets + number
        assert traffic.weight_updates == start.weight_updates, "the language model's are frozen"
        again, frames = run.answers()
        assert frames == 0 and distance(again, after) < SAME
        last = after
    check_copies(run)


def check_copies(run: Run) -> None:
    """Features of several media are put behind each other; those of one stay where they are."""
    _, media = run.runtime.encode(run.prompts, for_training=False)
    width = run.runtime.config.model.hidden_size
    size = sum(len(prompt.token_ids) * width * 4 for prompt in run.prompts)
    several = [prompt for prompt in run.prompts if len(prompt.media) > 1]
    assert several
    for prompt in several:
        parts = [media.embeddings[video.key()] for video in prompt.media]
        size += sum(part[:, width:].numel() * 4 for part in parts)
    for n in (1, 4):
        before = run.engine.stats
        how = SamplingSettings(n=n, max_tokens=4, seed=1)
        run.engine.generate(rollout_requests(run.prompts, "test"), media.embeddings, how)
        assert moved(run.engine, before, run.runtime.groups) == (len(run.prompts), size)
