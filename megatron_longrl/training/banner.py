"""The line that describes a run at its start."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch.distributed as dist
from torch import nn

from megatron_longrl.config import Entry
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.training.runtime import Runtime

_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "K"))


def banner(runtime: Runtime, entry: Entry, rows: int) -> str:
    """Model, layout, data and size of a step. Collective over the world.

    Args:
        rows: of the training data, those that can be used.
    """
    config, ranks = runtime.config, dist.get_world_size()
    parallel, training = config.parallel, config.training
    total, trained = count_parameters(runtime.model.modules, runtime.model.encoders, runtime.groups)
    layout = (
        f"TP {parallel.tensor_model_parallel_size} x MR-SP {parallel.context_parallel_size} x "
        f"PP {parallel.pipeline_model_parallel_size} x DP {parallel.data_parallel_size(ranks)}"
    )
    if entry == "rl":
        prompts, group = config.rl.grpo_prompts_per_step, config.rl.grpo_group_size
        step = f"{counted(prompts, 'prompt')} x {counted(group, 'response')}"
    else:
        step = counted(config.samples_per_step(ranks, entry), "row")
    return (
        f"{entry} of {config.model.family}: {amount(total)} parameters, {amount(trained)} of them "
        f"trained, {'bf16' if training.bf16 else 'fp32'}; {counted(ranks, 'rank')} = "
        f"{layout}; {counted(rows, 'row')} of data, {step} a step, "
        f"{counted(training.train_iters, 'step')}, at most {training.seq_length} tokens a row"
    )


def counted(number: int, name: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def count_parameters(
    modules: Mapping[str, nn.Module], encoders: Collection[str], groups: ParallelGroups
) -> tuple[int, int]:
    """Parameters of the whole model, and those that are trained. Collective over the world.

    Args:
        encoders: names of the modules that every rank has.

    An embedding that a last pipeline stage holds a copy of counts on each of them.
    """
    everywhere = [p for name, m in modules.items() if name not in encoders for p in m.parameters()]
    once = [p for name in encoders for p in modules[name].parameters()]
    first = groups.tp.rank() == groups.cp.rank() == groups.dp.rank() == 0
    mine = [0, 0]
    if first:
        mine = _counts(everywhere, groups)
    if dist.get_rank() == 0:
        mine = [a + b for a, b in zip(mine, _counts(once, groups), strict=True)]
    parts = gather_objects(groups.gloo_group, mine)
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def _counts(parameters: Iterable[nn.Parameter], groups: ParallelGroups) -> list[int]:
    total = trained = 0
    for parameter in parameters:
        split = groups.tp.size() if getattr(parameter, "tensor_model_parallel", False) else 1
        total += parameter.numel() * split
        trained += parameter.numel() * split * parameter.requires_grad
    return [total, trained]


def amount(number: int) -> str:
    """``1.25 M``."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
