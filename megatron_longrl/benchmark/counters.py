"""Counts of the inputs that pass through the modules, taken by hooks."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from megatron_longrl.rollout.vllm.engine import VllmEngine
from megatron_longrl.training.runtime import Runtime


class WorkCounter:
    """Tokens and frames of this rank by the part of the step that they were computed in.

    Args:
        engine: the engine whose model's tokens (padding included) are counted as ``engine_tokens``.
    """

    def __init__(self, runtime: Runtime, engine: VllmEngine) -> None:
        self.counts: Counter[str] = Counter()
        self.part = ""
        """Part of the step, which is the first word of the counts' names."""
        runtime.model.policy.module.decoder.register_forward_pre_hook(
            self._decoder, with_kwargs=True
        )
        for encoder in runtime.model.encoders.values():
            encoder.module.register_forward_pre_hook(self._encoder)
        engine.hook_model(self._engine)

    def pop(self) -> dict[str, int]:
        """Counts since the last call."""
        counts, self.counts = self.counts, Counter()
        return dict(counts)

    def _decoder(self, module: Any, inputs: Any, named: dict[str, Any]) -> None:
        hidden: Tensor = named["hidden_states"]  # [s, b, h]
        self.counts[f"{self.part}_tokens"] += hidden.shape[0] * hidden.shape[1]

    def _encoder(self, module: Any, inputs: tuple[Tensor]) -> None:
        self.counts["frames_encoded"] += inputs[0].shape[:2].numel()

    def _engine(self, module: Any, inputs: Any, named: dict[str, Any]) -> None:
        self.counts["engine_tokens"] += named["positions"].shape[-1]
