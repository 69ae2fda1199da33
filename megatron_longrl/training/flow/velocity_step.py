"""The forward step of flow-matching models: a velocity for every element of the latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from megatron_longrl.algorithms.flow.schedules import TRAIN_TIMESTEPS
from megatron_longrl.training.flow.rows import NoisyRows, TextEmbedding
from megatron_longrl.training.forward_step import ActivationShape


class VelocityModel(Protocol):
    """A flow-matching transformer, see :class:`~megatron_longrl.models.sd3.mmdit.MMDiT`."""

    def __call__(self, latents: Tensor, times: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Velocities of the latents' shape, whole on every rank."""


class VelocityStep:
    """Predicts velocities, with guidance where it is asked for.

    Sampling and training both go through :meth:`velocities`, so that a step has the same
    log-density in both.

    Args:
        guidance: 1 follows the prompt alone; a larger value goes further away from ``empty``.
        empty: the embedding of the empty prompt, where ``guidance`` is not 1.
    """

    def __init__(
        self, model: VelocityModel, guidance: float = 1.0, empty: TextEmbedding | None = None
    ) -> None:
        if guidance != 1 and empty is None:
            raise ValueError("guidance needs the embedding of the empty prompt")
        self._model, self._guidance, self._empty = model, guidance, empty

    def velocities(self, rows: NoisyRows) -> Tensor:
        """float32, of the latents' shape. The gradient of the prediction without a prompt is left
        out, as in Flow-GRPO."""
        conditional = self._predict(rows, rows.prompts)
        if self._empty is None or self._guidance == 1:
            return conditional
        with torch.no_grad():
            unconditional = self._predict(rows, (self._empty,) * len(rows.prompts))
        return unconditional + self._guidance * (conditional - unconditional)

    def _predict(self, rows: NoisyRows, prompts: tuple[TextEmbedding, ...]) -> Tensor:
        text, pooled = TextEmbedding.stack(prompts)
        return self._model(rows.latents, TRAIN_TIMESTEPS * rows.sigmas, text, pooled).float()

    def __call__(self, batch: NoisyRows, media: Mapping[str, Tensor]) -> Tensor:
        """[1, elements of all rows]."""
        return self.velocities(batch).reshape(1, -1)

    def activation_shape(self, batch: NoisyRows) -> ActivationShape:
        """A size that is not used: one pipeline stage sends nothing."""
        return ActivationShape(sequence_length=1, batch_size=len(batch.latents))

    def scatter(self, batch: NoisyRows, values: Tensor | None) -> Tensor:
        """[b, c, h, w]."""
        assert values is not None, "there is one pipeline stage"
        return values.view_as(batch.latents)
