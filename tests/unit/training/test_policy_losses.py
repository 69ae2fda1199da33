"""Policy losses on random ragged batches, values and gradients, against objectives written from
their papers in float64, response by response and without the code's shortcuts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup, RolloutKey
from megatron_longrl.training.batches import rl_batches
from megatron_longrl.training.losses import critic_loss, rl_loss
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.targets import ValueMicroBatch, ValueTargets
from megatron_longrl.training.token_values import scatter_to_shards
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import alone, make_groups, mr_sp, policy_batches

SEEDS = (0, 1, 2)
LOWER, UPPER, DUAL, CAP, FLOOR, MOST_TOKENS = 0.2, 0.3, 1.6, 1.5, 0.7, 12
KINDS = ("policy", "old", "rollout", "reference", "entropy", "advantages", "old_values", "returns")
Numbers = Mapping[str, Mapping[RolloutKey, Tensor]]
"""By kind and by the key of a rollout, float64 [tokens] that float32 holds exactly."""


def draw(seed: int) -> tuple[list[RolloutGroup], Numbers]:
    """Five groups of one to four responses of one to nine tokens."""
    pick = random.Random(seed)
    groups = make_groups([[pick.randint(1, 9) for _ in range(n)] for n in (3, 1, 2, 4, 2)])
    generator = torch.Generator().manual_seed(seed)
    numbers: dict[str, dict[RolloutKey, Tensor]] = {kind: {} for kind in KINDS}
    drawn = []
    for group in groups:
        rollouts = []
        for rollout in group.rollouts:
            for kind in KINDS:
                values = torch.randn(len(rollout.token_ids), generator=generator)
                scale, centre = (0.5, -2.0) if kind in KINDS[:4] else (1.0, 0.0)
                numbers[kind][rollout.key] = (scale * values + centre).double()
            rollouts.append(replace(rollout, logprobs=numbers["rollout"][rollout.key].float()))
            # GSPO has one advantage for a response; for the others one for every token is harder.
            numbers["advantages"][rollout.key] -= 0.3
        drawn.append(replace(group, rollouts=rollouts))
    return drawn, numbers


def spread_over_responses(groups: list[RolloutGroup], numbers: Numbers) -> None:
    """One advantage for all tokens of a response."""
    for group in groups:
        for response in group.rollouts:
            values = numbers["advantages"][response.key]
            values[:] = values[0].clone()


def ours(
    groups: list[RolloutGroup], numbers: Numbers, config: Config, ranks: Any
) -> tuple[Tensor, int, dict[RolloutKey, Tensor]]:
    """(sum, count, gradient by response) over all micro-batches of a rank."""
    leaves = {key: value.clone().requires_grad_() for key, value in numbers["policy"].items()}
    total, count = torch.zeros((), dtype=torch.float64), 0
    of_tokens = (numbers["advantages"], config, ranks, numbers["old"], numbers["reference"])
    for batch in policy_batches(groups, *of_tokens):
        logprobs, entropy = of_selected(batch, leaves), of_selected(batch, numbers["entropy"])
        loss, number, _ = rl_loss(config.algorithm, config.rollout)(batch, logprobs, entropy)
        total, count = total + loss, count + int(number)
    total.backward()
    gradients = {
        key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for key, leaf in leaves.items()
    }
    return total.detach(), count, gradients


def of_selected(batch: MicroBatch, values: Mapping[RolloutKey, Tensor]) -> Tensor:
    """[t] of the selected tokens, found by their responses."""
    places = zip(
        batch.response_index[batch.selected].tolist(),
        batch.token_index[batch.selected].tolist(),
        strict=True,
    )
    picked = [values[batch.rollouts[r].key][t] for r, t in places]
    return torch.stack(picked) if picked else torch.zeros(0, dtype=torch.float64)


def theirs(
    groups: list[RolloutGroup], numbers: Numbers, config: Config
) -> tuple[Tensor, dict[RolloutKey, Tensor]]:
    """(loss, gradient by response)"""
    leaves = {key: value.clone().requires_grad_() for key, value in numbers["policy"].items()}
    responses = [response for group in groups for response in group.rollouts]
    of_tokens = [_tokens(response, leaves, numbers, config) for response in responses]
    loss = AGGREGATIONS[config.algorithm.loss_aggregation](of_tokens)
    loss.backward()
    gradients = {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
    return loss.detach(), gradients


def _tokens(
    response: Rollout, leaves: Mapping[RolloutKey, Tensor], numbers: Numbers, config: Config
) -> Tensor:
    """[tokens] of one response."""
    key = response.key
    new, old, advantages = leaves[key], numbers["old"][key], numbers["advantages"][key]
    rollout = numbers["rollout"][key]
    base = rollout if config.algorithm.rollout_correction == "ratio" else old
    objective = OBJECTIVES[config.algorithm.policy_loss](new, base, advantages)
    weights = CORRECTIONS[config.algorithm.rollout_correction]((old - rollout).exp())
    divergence = DIVERGENCES[config.algorithm.kl_type](new, numbers["reference"][key])
    return -weights * objective + config.algorithm.grpo_kl_beta * divergence


def clip(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """https://arxiv.org/abs/1707.06347, equation 7: min(r A, clip(r) A), with DAPO's two bounds
    (https://arxiv.org/abs/2503.14476, section 3.1); for A < 0 not below c A
    (https://arxiv.org/abs/1912.09729, section "Dual-clip PPO")."""
    ratio = (new - old).exp()
    plain, bounded = ratio * advantages, ratio.clamp(1 - LOWER, 1 + UPPER) * advantages
    objective = torch.minimum(plain, bounded)
    return torch.where(advantages < 0, torch.maximum(objective, DUAL * advantages), objective)


def gspo(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """https://arxiv.org/abs/2507.18071, equations 5 and 7: min(s A, clip(s) A) with
    s = (pi(y) / pi_old(y))^(1 / |y|), the same for all tokens of a response."""
    ratio = (new.sum() - old.sum()).div(len(new)).exp()
    plain, bounded = ratio * advantages, ratio.clamp(1 - LOWER, 1 + UPPER) * advantages
    objective = torch.minimum(plain, bounded)
    return torch.where(advantages < 0, torch.maximum(objective, DUAL * advantages), objective)


def cispo(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """https://arxiv.org/abs/2506.13585, section 3.1: sg(clip(r)) A log pi."""
    weights = [min(1 + UPPER, max(1 - LOWER, r)) for r in (new - old).exp().tolist()]
    return torch.tensor(weights, dtype=torch.float64) * advantages * new


def policy_gradient(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """Williams, Machine Learning 8 (1992) 229, theorem 1: A log pi."""
    return advantages * new


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "clip": clip,
    "gspo": gspo,
    "cispo": cispo,
    "pg": policy_gradient,
}
AGGREGATIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    # DAPO, https://arxiv.org/abs/2503.14476, equation 8.
    "token-mean": lambda rows: torch.cat(rows).sum() / sum(map(len, rows)),
    # GRPO, https://arxiv.org/abs/2402.03300, equation 3.
    "seq-mean-token-mean": lambda rows: torch.stack([row.sum() / len(row) for row in rows]).mean(),
    # Dr. GRPO, https://arxiv.org/abs/2503.20783, section 3.2 and its listing 1.
    "seq-mean-token-sum-norm": lambda rows: torch.stack(
        [r.sum() / MOST_TOKENS for r in rows]
    ).mean(),
}
CORRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "off": torch.ones_like,
    # Ionides, J. Comput. Graph. Stat. 17 (2008) 295: min(ratio, cap).
    "token": lambda ratios: ratios.clamp(max=CAP),
    "sequence": lambda ratios: ratios.prod().clamp(max=CAP).expand_as(ratios),
    # https://ringtech.notion.site/icepop
    "icepop": lambda ratios: ratios * ((ratios >= FLOOR) & (ratios <= CAP)),
    # The objective's own ratio is to what sampled, see _tokens.
    "ratio": torch.ones_like,
}
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # http://joschu.net/blog/kl-approx.html with r = reference / policy: -log r, (log r)^2 / 2, and
    # r - 1 - log r, which is also https://arxiv.org/abs/2402.03300, equation 4.
    "k1": lambda new, ref: -(ref - new),
    "abs": lambda new, ref: (ref - new).abs(),
    "k2": lambda new, ref: (ref - new) ** 2 / 2,
    "k3": lambda new, ref: (ref - new).exp() - 1 - (ref - new),
}


def configure(loss: str, **changes: object) -> Config:
    values: dict[str, object] = {
        "policy_loss": loss,
        "grpo_clamp_eps_lower": LOWER,
        "grpo_clamp_eps_upper": UPPER,
        "dual_clip": DUAL,
        "rollout_is_threshold": CAP,
        "rollout_is_threshold_lower": FLOOR,
        "rollout_max_tokens": MOST_TOKENS,
        "micro_batch_size": 2,
    }
    return make_config(**(values | changes))


def compare(groups: list[RolloutGroup], numbers: Numbers, config: Config, parts: list[Any]) -> None:
    """
    Args:
        parts: (groups, rank) of every rank.
    """
    loss, gradients = theirs(groups, numbers, config)
    total, count = torch.zeros((), dtype=torch.float64), 0
    found = {key: torch.zeros_like(value) for key, value in gradients.items()}
    for mine, rank in parts:
        part, number, slopes = ours(mine, numbers, config, rank)
        total, count = total + part, count + number
        for key in found:
            found[key] += slopes[key]
    torch.testing.assert_close(total / count, loss, rtol=1e-6, atol=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key] / count, gradient, rtol=1e-6, atol=1e-6)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_objectives(loss, aggregation, seed):
    groups, numbers = draw(seed)
    if loss == "gspo":
        spread_over_responses(groups, numbers)
    config = configure(loss, loss_aggregation=aggregation)
    compare(groups, numbers, config, [(groups, alone())])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergences(kind, seed):
    groups, numbers = draw(seed)
    config = configure("clip", kl_type=kind, grpo_kl_beta=0.7)
    compare(groups, numbers, config, [(groups, alone())])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("loss", "correction"),
    [
        *product(("clip", "cispo"), CORRECTIONS),
        *product(("pg",), sorted(CORRECTIONS.keys() - {"ratio"})),  # has none
        # Its gradient at a token is that of its response only where all tokens weigh the same.
        *product(("gspo",), ("sequence", "ratio")),
    ],
)
def test_corrections(correction, loss, seed):
    groups, numbers = draw(seed)
    if loss == "gspo":
        spread_over_responses(groups, numbers)
    config = configure(loss, rollout_correction=correction)
    compare(groups, numbers, config, [(groups, alone())])


SPLITS: dict[str, dict[str, object]] = {
    "one micro-batch": {"micro_batch_size": 5},
    "a row each": {"micro_batch_size": 1},
    "no shared prompts": {"micro_batch_size": 5, "shared_prompt": False},
    "packed": {"use_sequence_packing": True, "seq_length": 40},
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_no_split_and_no_order_changes_anything(loss, aggregation, split):
    """Into micro-batches and replicas; groups and responses in another order."""
    groups, numbers = draw(3)
    if loss == "gspo":
        spread_over_responses(groups, numbers)
    config = configure(
        loss,
        loss_aggregation=aggregation,
        rollout_correction="sequence" if loss != "gspo" else "off",
        kl_type="k3",
        grpo_kl_beta=0.2,
        **SPLITS[split],
    )
    turned = []
    for group in reversed(groups):
        turned.append(replace(group, rollouts=group.rollouts[::-1]))
    for order in (groups, turned):
        compare(groups, numbers, config, [(order[:2], alone()), (order[2:], alone())])


@pytest.mark.parametrize("mode", ["encode", "full"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", ["clip", "cispo", "pg"])
def test_no_split_into_mr_sp_ranks_changes_anything(loss, aggregation, mode):
    """GSPO and the correction by response communicate: tests/distributed/test_policy_losses.py."""
    groups, numbers = draw(4)
    config = configure(loss, loss_aggregation=aggregation, context_parallel_size=2, mrsp_mode=mode)
    compare(groups, numbers, config, [(groups, mr_sp(rank, 2)) for rank in range(2)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bound", [0.2, None])
def test_value_loss(bound, seed):
    """1/2 max((V - R)^2, (V_old + clip(V - V_old) - R)^2), the value loss of PPO's code
    (https://arxiv.org/abs/2005.12729, section 3); without a bound https://arxiv.org/abs/1707.06347,
    equation 9."""
    groups, numbers = draw(seed)
    config = make_config(advantage="gae", critic_value_clip=bound, micro_batch_size=2)
    values, expected = (
        {key: value.clone().requires_grad_() for key, value in numbers["policy"].items()}
        for _ in range(2)
    )
    total, count = torch.zeros((), dtype=torch.float64), 0
    for packed in rl_batches(groups, config, alone()):
        returns = scatter_to_shards(packed, numbers["returns"])
        targets = ValueTargets(returns, scatter_to_shards(packed, numbers["old"]))
        batch = ValueMicroBatch.of(packed, targets)
        loss, number, _ = critic_loss(config.algorithm)(batch, of_selected(batch, values))
        total, count = total + loss, count + int(number)
    errors = []
    for key, value in expected.items():
        old, learned = numbers["old"][key], numbers["returns"][key]
        for v, o, r in zip(value, old.tolist(), learned.tolist(), strict=True):
            error = (v - r) ** 2
            if bound is not None:
                near = o + max(-bound, min(bound, float(v.detach()) - o))
                if (near - r) ** 2 > float(error.detach()):  # A constant beyond the bound.
                    error = (v.clamp(o - bound, o + bound) - r) ** 2
            errors.append(error / 2)
    mean = torch.stack(errors).mean()
    torch.testing.assert_close(total / count, mean, rtol=1e-6, atol=1e-6)
    (total / count).backward()
    mean.backward()
    for key, value in values.items():
        torch.testing.assert_close(value.grad, expected[key].grad, rtol=1e-6, atol=1e-6)
