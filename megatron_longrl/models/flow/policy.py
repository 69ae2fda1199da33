"""The common parts of the policies of all flow-matching families."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from megatron_longrl.models.flow.rules import UNREAD, FlowRules
from megatron_longrl.models.policy import Policy, PolicyWeights

if TYPE_CHECKING:
    import torch

    from megatron_longrl.config import Entry, ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups

_PROGRAMS: Mapping[Entry, str] = {
    "sft": "megatron_longrl.training.flow.pretrainer:train",
    "rl": "megatron_longrl.rl.flow.program:train",
    "evaluate": "megatron_longrl.rl.flow.evaluation:evaluate",
    "generate": "megatron_longrl.rl.flow.generation:generate",
}


def flow_policy(
    build: Callable[[ModelConfig, ParallelGroups], torch.nn.Module],
    weights: PolicyWeights,
    *,
    needed: Sequence[str],
    rules: Callable[[ModelConfig], Iterator[str]],
    adapted: Sequence[str],
    frozen_parts: str,
    unread: Sequence[str] = (),
) -> Policy:
    """Make the policy of a flow-matching family, with the programs that all of them have.

    Args:
        build: see :class:`Policy`.
        weights: see :class:`Policy`.
        needed: fields that a checkpoint or a recipe has to bring, beside ``diffusers_folder``.
        rules: a line for every rule of the family alone that does not hold.
        adapted: layers that get LoRA adapters by default, Flow-GRPO's; those of the feed-forward
            layers may have them, too.
        frozen_parts: see :class:`Policy`.
        unread: fields that this family does not read, beside those that none of them reads.
    """
    may_be_adapted = (*adapted, "linear_fc1", "linear_fc2")
    return Policy(
        build=build,
        programs=_PROGRAMS,
        required=("train_data_path",),
        required_of={"evaluate": ("load", "data"), "generate": ("prompts", "output")},
        defaults={"lora_target_modules": list(adapted)},
        rules=FlowRules((*needed, "diffusers_folder"), rules, may_be_adapted),
        unread=(*UNREAD, *unread),
        weights=weights,
        frozen_parts=frozen_parts,
    )
