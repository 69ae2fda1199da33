"""A tiny model on one layout, trained on given gradients, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_longrl.checkpoint.loading import load_checkpoint
from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import (
    export_named_tensors,
    local_parameters,
    mapping_table,
)
from megatron_longrl.parallel.groups import init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.training.model import build_model
from tests.tiny_vila import TINY

# The norm that clips is summed in another order on another layout.
UNCLIPPED = {**TINY, "clip_grad": 0.0}

LAYOUTS: dict[str, dict[str, object]] = {
    "dp2": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2 sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "tp2 tower": {"tensor_model_parallel_size": 2, "vision_tensor_parallel": True},
}


class Run:
    """A model on one layout."""

    def __init__(self, layout: str, **changes: object) -> None:
        platform.prepare()
        self.config = Config.of({**UNCLIPPED, **LAYOUTS[layout], **changes})
        self.groups = init_parallel(self.config.parallel, self.config.model)
        self.model = build_model(self.config, self.groups)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole model under Hugging Face names, as this rank sees it."""
        stream = export_named_tensors(self.model.modules, self.config, self.groups)
        return {name: tensor.clone() for name, tensor in stream}

    def train(self, steps: int, seed: int) -> None:
        """Steps on gradients that depend on the seed and the tensors' names alone."""
        local = local_parameters(self.model.modules)
        tp = self.groups.tp
        assert self.model.optimizer is not None and self.model.scheduler is not None
        for _ in range(steps):
            generator = torch.Generator().manual_seed(seed)
            shapes = {name: tensor.shape for name, tensor in self.tensors().items()}
            noise = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
            for mapping in mapping_table(self.config).expand():
                parameter = local.get(mapping.megatron_param)
                if parameter is None or not parameter.requires_grad:
                    continue
                size, rank = (1, 0) if mapping.replicated else (tp.size(), tp.rank())
                full = mapping.merge([noise[name] for name in mapping.hf_params])
                parameter.main_grad.copy_(mapping.shard(full, rank, size))  # type: ignore[attr-defined]
            self.model.optimizer.step()
            self.model.scheduler.step(increment=1)

    def save(self, folder: Path, iteration: int) -> Path:
        return save_checkpoint(
            folder,
            iteration,
            modules=self.model.modules,
            optimizers=self.model.optimizers,
            scheduler=self.model.scheduler,
            state={"consumed_samples": iteration},
            groups=self.groups,
            config=self.config,
        )

    def load(self, folder: Path):
        return load_checkpoint(
            folder,
            modules=self.model.modules,
            optimizers=self.model.optimizers,
            scheduler=self.model.scheduler,
            groups=self.groups,
            config=self.config,
            checkpoint=self.config.checkpoint,
        )


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name
