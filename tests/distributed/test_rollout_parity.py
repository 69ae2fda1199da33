"""vLLM, the trainer and the reference engine are one model: greedy tokens and log-probabilities,
also after updates."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_longrl.conversion.hf import load_hf_weights
from megatron_longrl.conversion.mapping import weight_stream
from megatron_longrl.data.rows import load_rows
from megatron_longrl.data.tokenizer import train_sentencepiece
from megatron_longrl.experience.rollouts import rollout_requests
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.parallel.sequence import unshard_sequence
from megatron_longrl.rollout.build import build_engine
from megatron_longrl.rollout.weights.receiver import WeightIterator
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.losses import rl_loss
from megatron_longrl.training.runtime import build_runtime
from tests.distributed.families import run_config
from tests.distributed.layouts import tiny_config, write_data
from tests.runner.tiers import full_only
from tests.unit.training.made_up import make_advantages, policy_batches

HERE = "tests/distributed/test_rollout_parity.py::"
LAYOUTS: dict[str, dict[str, Any]] = {
    "MR-SP2, an engine a rank": {"context_parallel_size": 2, "rollout_tensor_parallel_size": 1},
    "MR-SP2, one engine": {"context_parallel_size": 2, "rollout_tensor_parallel_size": 2},
    "TP2": {"tensor_model_parallel_size": 2, "rollout_tensor_parallel_size": 2},
    "PP2": {"pipeline_model_parallel_size": 2, "rollout_tensor_parallel_size": 1},
    "DP2": {"rollout_tensor_parallel_size": 1},
    "TP2, a server": {"tensor_model_parallel_size": 2, "rollout_engine": "server"},
    "PP2, a server": {"pipeline_model_parallel_size": 2, "rollout_engine": "server"},
}
TOKENS = 5


class Run:
    """A tiny run with its engine."""

    def __init__(self, config, checkpoint=None):
        self.runtime = build_runtime(config, "rl")
        if checkpoint is not None:
            parts = self.runtime.model
            load_hf_weights(checkpoint, parts.modules, self.runtime.config, self.runtime.groups)
            for optimizer in parts.optimizers.values():
                optimizer.reload_model_params()
        self.engine = self.build()
        self.reference = self.build(rollout_engine="megatron", rollout_tensor_parallel_size=None)
        self.version = 0
        self.sync()
        rows = self.runtime.rows_of_replica(load_rows(config.data.train_data_path))
        prompts = self.runtime.build_prompts(rows)
        self.prompts, self.media = self.runtime.encode(prompts, for_training=True)

    def build(self, **changes):
        runtime = self.runtime
        config = runtime.config.replace(**changes)
        return build_engine(config, runtime.tokenizer, runtime.groups, runtime.model.policy.module)

    def sync(self):
        runtime = self.runtime
        weights = WeightIterator(
            lambda: weight_stream(runtime.model.modules, runtime.config, runtime.groups)
        )
        self.engine.update_weights(weights, self.version)
        self.reference.update_weights(weights, self.version)
        self.version += 1

    def generate(self, n, temperature, engine=None):
        sampling = SamplingSettings(n=n, max_tokens=TOKENS, temperature=temperature, seed=1)
        return (engine or self.engine).generate(
            rollout_requests(self.prompts, "test"), self.media.embeddings, sampling
        )

    def greedy(self):
        """Of every prompt, by vLLM; the reference draws the same."""
        ours, theirs = (tokens(self.generate(1, 0.0, e)) for e in (self.reference, self.engine))
        assert ours == theirs
        return theirs

    def gaps(self, n):
        """Of vLLM's and of the reference's samples."""
        return [self.gap(self.generate(n, 1.0, engine)) for engine in (self.engine, self.reference)]

    def logprobs(self, groups):
        """The trainer's, by group and response."""
        config = self.runtime.config.replace(
            grpo_group_size=len(groups[0].rollouts), seq_length=10_000, micro_batch_size=1
        )
        batches = rl_batches(groups, config, self.runtime.groups)
        shards = self.runtime.train_step.forward_logprobs(batches, self.media.embeddings)
        results = []
        for shard, batch, group in zip(shards, batches, groups, strict=True):
            values = unshard_sequence(shard, batch.sequence_group)
            start, rows = len(group.prompt.token_ids) - 1, []
            for response in group.rollouts:
                rows.append(values[0, start : start + len(response.token_ids)])
                start += len(response.token_ids)
            results.append(rows)
        return results

    def gap(self, groups):
        """Mean |difference| of log-probabilities between trainer and engine."""
        pairs = [
            (ours - response.logprobs).abs()
            for group, row in zip(groups, self.logprobs(groups), strict=True)
            for response, ours in zip(group.rollouts, row, strict=True)
        ]
        return float(torch.cat(pairs).mean())

    def trainer_prefers(self, group):
        """The trainer's own choice at every position of the group's only response."""
        (response,), choices = group.rollouts, []
        vocabulary = self.runtime.tokenizer.vocab_size
        for position in range(len(response.token_ids)):
            prefix = response.token_ids[:position]
            candidates = [
                dataclasses.replace(
                    response,
                    index=token,
                    token_ids=torch.cat([prefix, torch.tensor([token])]),
                    logprobs=torch.zeros(position + 1),
                )
                for token in range(vocabulary)
            ]
            (row,) = self.logprobs([dataclasses.replace(group, rollouts=candidates)])
            choices.append(int(torch.stack([values[-1] for values in row]).argmax()))
        return choices

    def update(self):
        groups = self.generate(2, 1.0)
        advantages = make_advantages(groups)
        batches = policy_batches(groups, advantages, self.runtime.config, self.runtime.groups)
        self.runtime.train_step.train(
            batches,
            self.media.embeddings,
            self.media.encoded,
            rl_loss(self.runtime.config.algorithm, self.runtime.config.rollout),
        )
        # The encoders have changed, and the graph of their last pass is gone.
        _, self.media = self.runtime.encode(self.prompts, for_training=True)
        self.sync()


TEXT = {"data_type": "text", "videos": []}
pytestmark = pytest.mark.patience(2)  # Servers import vLLM anew.
OPTIONS = {"rollout_max_tokens": TOKENS, "rollout_memory_gib": 0.05, "lr": 0.01}


def vila(folder, **changes):
    return Run(tiny_config(folder, hidden_size=128, kv_channels=32, **OPTIONS, **changes))


@pytest.fixture
def data(shared_path):
    if dist.get_rank() == 0:
        write_data(shared_path)
    dist.barrier()
    return shared_path


@pytest.mark.parametrize(
    "layout",
    full_only(f"{HERE}test_greedy_tokens_and_gap_in_fp32", LAYOUTS, ["MR-SP2, one engine"]),
)
def test_greedy_tokens_and_gap_in_fp32(data, layout):
    check(vila(data, **LAYOUTS[layout]))


@pytest.mark.full(f"{HERE}test_greedy_tokens_and_gap_in_fp32")
def test_more_ranks_than_key_and_value_heads(data):
    """vLLM repeats the only head, too."""
    check(vila(data, num_query_groups=1, **LAYOUTS["TP2"]))


YARN = {
    "rope_scaling_type": "yarn",
    "rope_scaling_factor": 8.0,
    "yarn_original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "kind",
    full_only(
        f"{HERE}test_a_lengthened_context_with_positions_of_media", ["linear", "dynamic", "yarn"]
    ),
)
def test_a_lengthened_context(data, kind):
    scaling = YARN if kind == "yarn" else {"rope_scaling_type": kind, "rope_scaling_factor": 8.0}
    check(vila(data, **scaling, **LAYOUTS["MR-SP2, one engine"]))


def tokens(groups):
    return [[r.token_ids.tolist() for r in group.rollouts] for group in groups]


def check(run):
    try:
        before = run.greedy()
        assert max(run.gaps(4)) <= 1e-4
        for _ in range(3):
            run.update()
        assert run.greedy() != before, "the updates must show, or the test shows nothing"
        assert max(run.gaps(4)) <= 1e-4
    finally:
        run.engine.close()


@pytest.mark.parametrize(
    ("family", "layout"),
    full_only(
        f"{HERE}test_videos_and_images_at_positions_of_their_own",
        [
            pytest.param(family, layout, id=f"{family}-{layout}")
            for family in ("qwen2_5_vl", "qwen3_vl", "qwen2_5_omni")
            for layout in ("MR-SP2, one engine", "PP2", "TP2, a server")
        ],
        ["qwen3_vl-PP2", "qwen2_5_omni-MR-SP2, one engine"],
    ),
)
def test_videos_and_images_at_positions_of_their_own(family_folder, family, layout):
    """Time, height and width; for Qwen3-VL what DeepStack adds, for Omni films with their sound."""
    folder = family_folder(family)
    check(Run(run_config(folder, **OPTIONS | LAYOUTS[layout]), folder / "hf"))


@pytest.mark.parametrize(
    ("family", "layout"),
    full_only(
        f"{HERE}test_a_lengthened_context_with_positions_of_media",
        [
            pytest.param(family, layout, id=f"{family}-{layout}")
            for family in ("qwen2_5_vl", "qwen3_vl")
            for layout in ("MR-SP2, one engine", "TP2, a server")
        ],
        ["qwen2_5_vl-MR-SP2, one engine"],
    ),
)
def test_a_lengthened_context_with_positions_of_media(family_folder, family, layout):
    folder = family_folder(family)
    check(Run(run_config(folder, **OPTIONS | YARN | LAYOUTS[layout]), folder / "hf"))


@pytest.mark.parametrize(
    "layout",
    full_only(
        f"{HERE}test_text",
        ["MR-SP2, an engine a rank", "TP2", "PP2"],
        ["MR-SP2, an engine a rank"],
    ),
)
def test_text(shared_path, layout):
    if dist.get_rank() == 0:
        lines = [
            json.dumps({"problem_id": k, "problem": f"What is {k}?", "answer": "A"} | TEXT)
            for k in range(4)
        ]
        (shared_path / "train.jsonl").write_text("\n".join(lines))
        train_sentencepiece(lines, shared_path / "tok", 310)
    dist.barrier()
    vision = dict.fromkeys(VilaSection.required, 0)
    check(vila(shared_path, model_family="qwen2", **vision, **LAYOUTS[layout]))


@pytest.mark.parametrize(
    "layout",
    full_only(f"{HERE}test_gap_in_bf16", ["MR-SP2, an engine a rank", "TP2", "PP2"], ["TP2"]),
)
def test_gap_in_bf16(data, layout):
    check_bf16(vila(data, bf16=True, **LAYOUTS[layout]))


@pytest.mark.parametrize("layout", full_only(f"{HERE}test_gap_in_bf16", ["TP2", "PP2"]))
def test_gap_of_qwen2_5_vl_in_bf16(family_folder, layout):
    folder = family_folder("qwen2_5_vl")
    check_bf16(Run(run_config(folder, bf16=True, **OPTIONS | LAYOUTS[layout]), folder / "hf"))


def check_bf16(run):
    try:
        assert max(run.gaps(8)) <= 0.02
        run.update()
        assert max(run.gaps(8)) <= 0.02
    finally:
        run.engine.close()
