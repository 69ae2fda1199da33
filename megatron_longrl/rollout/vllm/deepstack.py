"""DeepStack in vLLM's language models, which support it only behind their own vision towers.

A request brings the features with its sampling parameters; hooks behind the first layers add those
of the tokens that are being computed. Tokens from the prefix cache have them already.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

_KEY = "deepstack"


def with_features(media_mask: Tensor, features: Tensor) -> dict[str, Any]:
    """``extra_args`` of a request.

    Args:
        media_mask: bool [P]: which tokens of the prompt get features.
        features: [m, levels * h], of these tokens in order.
    """
    return {_KEY: (media_mask.nonzero().flatten(), features)}


class DeepStackFeed:
    """The DeepStack features of one model runner, in eager mode only: compiled graphs do not run
    hooks.

    Args:
        runner: vLLM's, whose step for multimodal positions comes before each forward pass.
        levels: layers that add features.
    """

    def __init__(self, runner: Any, levels: int) -> None:
        self._runner = runner
        self._rows = torch.empty(0, dtype=torch.long)
        self._features: Tensor | None = None
        self._calculate_positions = runner._calc_mrope_positions
        runner._calc_mrope_positions = self._before_step
        for level in range(levels):
            layer = runner.get_model().model.layers[level]
            layer.register_forward_hook(partial(self._add, level, levels))

    def _before_step(self, scheduled: Any) -> None:
        """Find the features of the tokens of this step, which lie request behind request."""
        self._calculate_positions(scheduled)
        batch = self._runner.input_batch
        rows, features, start = [], [], 0
        for index, name in enumerate(batch.req_ids):
            first = int(batch.num_computed_tokens_cpu[index])
            count = scheduled.num_scheduled_tokens[name]
            extra = self._runner.requests[name].sampling_params.extra_args or {}
            if _KEY in extra:
                places, whole = extra[_KEY]
                here = (places >= first) & (places < first + count)
                rows.append(places[here] - first + start)
                features.append(whole[here])
            start += count
        self._rows = torch.cat(rows) if rows else torch.empty(0, dtype=torch.long)
        self._features = torch.cat(features) if features else None

    def _add(self, level: int, levels: int, layer: Any, inputs: Any, output: Any) -> Any:
        """A layer's output is (hidden [tokens, h], residual), whose sum is the hidden state."""
        if self._features is None or not len(self._rows):
            return output
        hidden, residual = output
        part = self._features.chunk(levels, dim=1)[level].to(hidden.device, hidden.dtype)
        return hidden.index_add(0, self._rows.to(hidden.device), part), residual
