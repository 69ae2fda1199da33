"""Adapters of Stable Diffusion 3 in the libraries that read them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftModel

from megatron_longrl.arena.shapes_folder import write_folder
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.cli.conversion import loader_megatron, loader_peft, saver_peft
from megatron_longrl.cli.conversion.plugins import tensor_names
from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import config_from_hf, load_hf_weights
from megatron_longrl.conversion.mapping import local_adapters
from megatron_longrl.models.sd3.policy import ADAPTED
from megatron_longrl.observability.timing import PhaseTimer
from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.rl.trainer import build_reference
from megatron_longrl.training.model import build_model
from megatron_longrl.training.run import Run
from tests import tiny_sd3
from tests.unit.checkpoint.test_pipelines import SIZES

GIVEN = {
    "latents": torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)),
    "times": torch.tensor([200.0, 900.0]),
    "text": torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)),
    "pooled": torch.randn(2, 64, generator=torch.Generator().manual_seed(3)),
}


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    platform.prepare()
    yield
    destroy_parallel()


@torch.no_grad()
def test_adapters_out_and_in(tmp_path: Path) -> None:
    with torch.enable_grad():  # it trains its autoencoder
        write_folder(tmp_path / "base", 0, steps=1)
    base = tiny_sd3.diffusers_model(**SIZES)
    base.save_pretrained(tmp_path / "base" / "transformer")  # type: ignore[operator]
    fields: dict[str, Any] = {"seq_length": 1, "lora_rank": 3, "lora_alpha": 4, "grpo_kl_beta": 0.1}
    fields |= {"lora_target_modules": ADAPTED}
    config = Config.of({**config_from_hf(tmp_path / "base"), **fields})
    groups = init_parallel(config.parallel, config.model)
    with torch.enable_grad():  # core looks for the graph of parameters
        model = build_model(config, groups)
    load_hf_weights(tmp_path / "base", model.modules, config, groups)
    torch.manual_seed(9)
    for adapter in local_adapters(model.modules).values():
        torch.nn.init.normal_(adapter.B, std=0.1)
    ours = model.policy.module(**GIVEN)
    plain = tiny_sd3.their_velocity(base, GIVEN)
    assert (ours - plain).abs().max() > 0.01, "the adapters are no small part of it"
    reference = build_reference(Run(config, groups, "rl", model, PhaseTimer()))
    assert reference is not None
    with reference.in_place():
        assert (model.policy.module(**GIVEN) - plain).abs().max() < 1e-4
    save_checkpoint(
        tmp_path / "run",
        1,
        modules=model.modules,
        optimizers={},
        scheduler=None,
        state={},
        groups=groups,
        config=config,
        carry_from=tmp_path / "base",
    )
    source = loader_megatron.load_checkpoint(
        Namespace(load_dir=tmp_path / "run", iteration=None, use_ema=False)
    )
    flags = {"torch_dtype": None, "base_dir": tmp_path / "base"}
    saver_peft.save_checkpoint(source, Namespace(**flags, save_dir=tmp_path / "adapter"))

    def theirs() -> SD3Transformer2DModel:
        return SD3Transformer2DModel.from_pretrained(tmp_path / "base" / "transformer")

    by_peft = PeftModel.from_pretrained(theirs(), str(tmp_path / "adapter")).eval()
    assert (tiny_sd3.their_velocity(by_peft, GIVEN) - ours).abs().max() < 1e-4
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "base")
    pipeline.load_lora_weights(tmp_path / "adapter")
    assert (tiny_sd3.their_velocity(pipeline.transformer, GIVEN) - ours).abs().max() < 1e-4
    again = loader_peft.load_checkpoint(
        Namespace(load_dir=tmp_path / "adapter", base_dir=tmp_path / "base")
    )
    for name in tensor_names(source.config):
        assert torch.equal(again.read(name), source.read(name)), name
