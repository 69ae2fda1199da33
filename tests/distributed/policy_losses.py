"""Off-policy losses in any layout, against formulas in float64 on the twin.

The formulas are written down once more here, from the papers that tests/unit/training/
test_policy_losses.py names; the twin's log-probabilities come from whole sequences on one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import export_named_tensors
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import load_rows
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup, RolloutKey, Segment
from megatron_longrl.rewards.runner import RewardRunner, build_rewards
from megatron_longrl.rl.mini_batches import MiniBatch, with_targets
from megatron_longrl.rl.reference import CopiedWeights
from megatron_longrl.rl.trainer import RLTrainer
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.losses import rl_loss
from megatron_longrl.training.runtime import Runtime, build_runtime
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.token_values import scatter_to_shards
from tests.distributed.layouts import (
    RESPONSES,
    TOLERANCE,
    gradients_of,
    largest_error,
    tiny_config,
)
from tests.distributed.twin import Twin, taken
from tests.scripted_engine import ScriptedEngine

LOSSES = ("clip", "gspo", "cispo", "pg")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm")
CORRECTIONS = ("ratio", "token", "sequence", "icepop")
KLS = ("k3", "full", "k1", "k2", "abs")
LOWER, UPPER, DUAL, BETA, BONUS, CAP, FLOOR = 0.2, 0.3, 1.5, 0.2, 0.05, 1.5, 0.6
MOST_TOKENS = 40


def settings() -> Iterator[dict[str, object]]:
    """Every loss with every aggregation, with every correction and KL term in turn."""
    for i, loss in enumerate(LOSSES):
        for j, aggregation in enumerate(AGGREGATIONS):
            yield {
                "policy_loss": loss,
                "loss_aggregation": aggregation,
                # pg has no ratio.
                "rollout_correction": CORRECTIONS[1 + j if loss == "pg" else (i + j) % 4],
                "kl_type": KLS[(i + j) % 2] if i < 3 else KLS[2 + j],
                "grpo_kl_beta": BETA,
                "grpo_entropy_term_weight": BONUS,
                "grpo_clamp_eps_lower": LOWER,
                "grpo_clamp_eps_upper": UPPER,
                "dual_clip": DUAL,
                "rollout_is_threshold": CAP,
                "rollout_is_threshold_lower": FLOOR,
            }


@dataclass(frozen=True)
class Numbers:
    """What is made up for one response, float32 [R]; log-probabilities are near the model's own."""

    tokens: Tensor
    old: Tensor
    rollout: Tensor
    advantages: Tensor

    @staticmethod
    @cache
    def of(row: int, index: int) -> Numbers:
        """The same on every rank."""
        length = RESPONSES[row][index]
        generator = torch.Generator().manual_seed(10 * row + index)

        def normal(mean: float, deviation: float) -> Tensor:
            return mean + deviation * torch.randn(length, generator=generator)

        tokens = torch.randint(20, 60, (length,), generator=generator)
        return Numbers(
            tokens,
            normal(-5.8, 0.4),
            normal(-5.8, 0.4),
            normal(0.0, 1.0),
        )


def off_policy_groups(
    prompts: Iterable[Prompt],
) -> tuple[list[RolloutGroup], dict[RolloutKey, Numbers]]:
    """Groups of the made-up responses to some rows, and the numbers of each rollout."""
    groups = []
    numbers: dict[RolloutKey, Numbers] = {}
    for prompt in prompts:
        row = int(prompt.row.problem_id)
        responses = []
        for index in range(len(RESPONSES[row])):
            made_up = Numbers.of(row, index)
            response = Rollout(
                group_id=str(row),
                index=index,
                token_ids=made_up.tokens,
                logprobs=made_up.rollout,
                text="",
                reward_text="",
                finish_reason="stop",
                segments=(Segment(len(made_up.tokens), 0),),
            )
            numbers[response.key] = made_up
            responses.append(response)
        groups.append(RolloutGroup(str(row), prompt, responses))
    return groups, numbers


# ---- The twin ----


@dataclass
class Answers:
    """The twin's view of one response."""

    numbers: Numbers
    policy: Tensor
    """[R, v] log-probabilities, with a graph."""
    reference: Tensor
    """[R, v] without."""

    @property
    def logprobs(self) -> Tensor:
        return taken(self.policy, self.numbers.tokens.tolist()).double()


_TWINS: dict[str, tuple[Twin, list[Answers]]] = {}


def twin_of(
    runtime: Runtime, weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> tuple[Twin, list[Answers]]:
    """Whole sequences of all rows of all replicas; computed once for the same data."""
    config = runtime.config
    key = str(config.data.train_data_path)
    if key not in _TWINS:
        policy, other = Twin(config, weights), Twin(config, reference)
        answers = []
        for prompt in runtime.build_prompts(load_rows(config.data.train_data_path)):
            row = int(prompt.row.problem_id)
            for index in range(len(RESPONSES[row])):
                numbers = Numbers.of(row, index)
                ids = numbers.tokens.tolist()
                with torch.no_grad():
                    frozen = other.distributions(prompt, ids)
                answers.append(Answers(numbers, policy.distributions(prompt, ids), frozen))
        _TWINS[key] = policy, answers
    return _TWINS[key]


def expected_loss(config: Config, answers: Iterable[Answers]) -> Tensor:
    """Response by response, in float64, with a graph."""
    by_response = [_loss_of_tokens(config, answer) for answer in answers]
    if config.algorithm.loss_aggregation == "token-mean":
        return torch.cat(by_response).mean()
    if config.algorithm.loss_aggregation == "seq-mean-token-mean":
        return torch.stack([losses.mean() for losses in by_response]).mean()
    return torch.stack([losses.sum() / MOST_TOKENS for losses in by_response]).mean()


def _loss_of_tokens(config: Config, answer: Answers) -> Tensor:
    """[R]"""
    numbers, logprobs = answer.numbers, answer.logprobs
    old, advantages = numbers.old.double(), numbers.advantages.double()
    log_p = answer.policy.double()
    base = numbers.rollout.double() if config.algorithm.rollout_correction == "ratio" else old
    ratio = (logprobs - base).exp()
    if config.algorithm.policy_loss == "gspo":
        mean = (logprobs - base).mean().exp().detach()
        ratio = mean * logprobs.exp() / logprobs.exp().detach()
    if config.algorithm.policy_loss == "pg":
        gain = advantages * logprobs
    elif config.algorithm.policy_loss == "cispo":
        gain = ratio.detach().clamp(1 - LOWER, 1 + UPPER) * advantages * logprobs
    else:
        gain = torch.minimum(ratio * advantages, ratio.clamp(1 - LOWER, 1 + UPPER) * advantages)
        gain = torch.where(advantages < 0, torch.maximum(gain, DUAL * advantages), gain)
    weights = (old - numbers.rollout.double()).exp()
    if config.algorithm.rollout_correction == "token":
        weights = weights.clamp(max=CAP)
    elif config.algorithm.rollout_correction == "sequence":
        weights = weights.prod().clamp(max=CAP).expand_as(gain)
    elif config.algorithm.rollout_correction == "icepop":
        weights = torch.where((weights < FLOOR) | (weights > CAP), 0.0, weights)
    else:
        weights = torch.ones_like(gain)
    return (
        -weights * gain
        + BETA * _divergence(config, answer)
        - BONUS * -(log_p.exp() * log_p).sum(-1)
    )


def _divergence(config: Config, answer: Answers) -> Tensor:
    """[R] from the reference."""
    log_p, log_q = answer.policy.double(), answer.reference.double()
    if config.algorithm.kl_type == "full":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    difference = answer.logprobs - taken(log_q, answer.numbers.tokens.tolist())
    return {
        "k1": difference,
        "abs": difference.abs(),
        "k2": difference.square() / 2,
        "k3": (-difference).exp() - 1 + difference,
    }[config.algorithm.kl_type]


# ---- The comparison ----


def rewards_of(runtime: Runtime) -> RewardRunner:
    """Of a trainer whose groups come with their rewards."""
    return build_rewards(runtime.config.reward, runtime.groups)


def check_policy_losses(folder: Path, **layout: object) -> None:
    """Losses and gradients of all :func:`settings` in one layout."""
    runtime = build_runtime(tiny_config(folder, grpo_kl_beta=BETA, **layout), "rl")
    reference, reference_weights = (
        CopiedWeights(runtime.model.policy.module),
        named_weights(runtime),
    )
    with torch.no_grad():
        for parameter in runtime.model.policy.module.parameters():
            parameter.mul_(1.1)
    groups, media, numbers = prepared(runtime)
    twin, answers = twin_of(runtime, named_weights(runtime), reference_weights)
    trainer = RLTrainer(runtime, ScriptedEngine(lambda *_: True), rewards_of(runtime), reference)
    problems = {}
    for fields in settings():
        config = trainer.config = runtime.config.replace(**fields)
        packed = rl_batches(groups, config, runtime.groups)
        old = [_scattered(batch, numbers, lambda n: n.old) for batch in packed]
        results = replace(trainer._forward_results(packed, media), old_logprobs=old)
        advantages = {key: own.advantages for key, own in numbers.items()}
        (part,) = with_targets([MiniBatch((), packed)], results, advantages, {})
        result = runtime.train_step.train(
            part.policy, media.embeddings, media.encoded, rl_loss(config.algorithm, config.rollout)
        )
        ours = gradients_of(runtime, runtime.model.modules)
        loss = expected_loss(config, answers)
        clear_gradients(twin)
        loss.backward(retain_graph=True)
        problem = difference(result.metrics["lm loss"], loss, ours, twin.gradients())
        if problem:
            problems[str(list(fields.values())[:4])] = problem
    assert not problems


def prepared(runtime: Runtime):
    """This replica's groups, the embeddings of their videos, and the numbers of their responses."""
    rows = runtime.rows_of_replica(load_rows(runtime.config.data.train_data_path))
    prompts = runtime.build_prompts(rows)
    _, media = runtime.encode(prompts, for_training=True)
    groups, numbers = off_policy_groups(prompts)
    return groups, media, numbers


def _scattered(
    batch: MicroBatch, numbers: Mapping[RolloutKey, Numbers], field: Callable[[Numbers], Tensor]
) -> Tensor:
    return scatter_to_shards(batch, {key: field(own) for key, own in numbers.items()})


def named_weights(runtime: Runtime) -> dict[str, Tensor]:
    """All weights by Hugging Face names; collective over the replica."""
    stream = export_named_tensors(runtime.model.modules, runtime.config, runtime.groups)
    return {name: tensor.clone() for name, tensor in stream}


def clear_gradients(twin: Twin) -> None:
    for module in (twin.llm, twin.tower):
        module.zero_grad(set_to_none=True)
    for tensor in twin.projector.values():
        tensor.grad = None


def difference(
    loss: float, expected: Tensor, ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> str | None:
    """What is not equal within the tolerance."""
    if loss != pytest.approx(float(expected.detach()), rel=TOLERANCE, abs=1e-6):
        return f"loss {loss}, expected {float(expected.detach())}"
    error = largest_error(ours, theirs)
    return f"gradients differ by {error:.2e}" if error > TOLERANCE else None
