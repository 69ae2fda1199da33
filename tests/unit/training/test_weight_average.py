"""The moving average of trained weights: its values, and its way through a checkpoint."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrl.checkpoint.loading import load_checkpoint, load_weights
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.cli.conversion import loader_megatron
from megatron_longrl.config import Config
from megatron_longrl.errors import UserError
from megatron_longrl.models.sd3.policy import ADAPTED
from megatron_longrl.observability.timing import PhaseTimer
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.flow.average import average_of
from megatron_longrl.training.model import build_model
from megatron_longrl.training.run import Run
from tests import tiny_sd3

LORA: dict[str, Any] = {"lora_rank": 2, "lora_alpha": 4, "lora_target_modules": ADAPTED}
KINDS: dict[str, dict[str, Any]] = {"all weights": {}, "adapters": LORA}


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    platform.prepare()
    yield
    destroy_parallel()


def run_of(config: Config) -> Run:
    groups = init_parallel(config.parallel, config.model)
    return Run(config, groups, "rl", build_model(config, groups), PhaseTimer())


def trained(run: Run) -> dict[str, Tensor]:
    named = run.model.policy.module.named_parameters()
    return {name: p for name, p in named if p.requires_grad}


@torch.no_grad()
def add_noise(weights: Iterable[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def changed(run: Run, seed: int) -> dict[str, Tensor]:
    """Copies of the trained weights, after each has been given other values."""
    add_noise(trained(run).values(), seed)
    return {name: weight.detach().clone() for name, weight in trained(run).items()}


def save(run: Run, folder: Path, **averages: torch.nn.Module) -> None:
    modules = {**run.model.modules, **averages}
    save_checkpoint(
        folder, 1, modules=modules, optimizers={}, scheduler=None, state={}, groups=run.groups,
        config=run.config,
    )  # fmt: skip


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_values_and_checkpoint(fields: dict[str, Any], tmp_path: Path) -> None:
    run = run_of(tiny_sd3.config(ema_decay=0.75, ema_interval=2, **fields))
    average = average_of(run)
    assert average is not None
    add_noise(run.model.policy.module.parameters(), 0)  # so that no product of weights is 0
    average.begin(run.model.policy.module)
    first = {name: weight.detach().clone() for name, weight in trained(run).items()}
    changed(run, 1)
    average.update(0)
    second = changed(run, 2)
    average.update(1)
    expected = {name: 0.75 * first[name] + 0.25 * second[name] for name in second}
    given = tiny_sd3.inputs(tiny_sd3.SQUARE)
    with torch.no_grad(), average.in_place():
        for name, weight in trained(run).items():
            torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
        of_average = run.model.policy.module(**given)
    with torch.no_grad():
        of_weights = run.model.policy.module(**given)
    assert (of_average - of_weights).abs().max() > 1e-3
    assert all(torch.equal(weight, second[name]) for name, weight in trained(run).items())

    save(run, tmp_path, **average.modules)
    for use_ema, velocity in ((True, of_average), (False, of_weights)):
        other = run_of(tiny_sd3.config(seed=77))
        load_weights(
            tmp_path, modules=other.model.modules, optimizers={}, groups=other.groups,
            config=other.config, use_ema=use_ema,
        )  # fmt: skip
        with torch.no_grad():
            again = other.model.policy.module(**given)
        torch.testing.assert_close(again, velocity, atol=1e-5, rtol=0)
    sources = [
        loader_megatron.load_checkpoint(
            Namespace(load_dir=tmp_path, iteration=None, use_ema=use_ema)
        )
        for use_ema in (True, False)
    ]
    name = "transformer/transformer_blocks.0.attn.to_q.weight"
    assert not torch.equal(*(source.read(name) for source in sources))

    resumed = run_of(tiny_sd3.config(seed=78, ema_decay=0.75, **fields))
    kept = average_of(resumed)
    assert kept is not None
    load_checkpoint(
        tmp_path, modules={**resumed.model.modules, **kept.modules}, optimizers={},
        scheduler=None, groups=resumed.groups, config=resumed.config,
        checkpoint=resumed.config.checkpoint,
    )  # fmt: skip
    with kept.in_place():
        for name, weight in trained(resumed).items():
            torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def test_a_run_without_averages_says_so(tmp_path: Path) -> None:
    run = run_of(tiny_sd3.config())
    assert average_of(run) is None
    save(run, tmp_path)
    with pytest.raises(UserError, match="without --ema-decay: leave --use-ema out"):
        loader_megatron.load_checkpoint(Namespace(load_dir=tmp_path, iteration=None, use_ema=True))
