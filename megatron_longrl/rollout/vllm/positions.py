"""Positions of time, height and width for vLLM, which would take embeddings for text.

vLLM derives multimodal rotary positions from the inputs of a family's own processor. Here prompts
come as embeddings, and their positions with the request's sampling parameters.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_KEY = "position_ids"


def with_positions(positions: Tensor) -> dict[str, Any]:
    """``extra_args`` of a request whose prompt has these positions, long [P, 3]."""
    return {_KEY: positions}


def take_positions(request: Any) -> None:
    """Replace GPUModelRunner._init_mrope_positions (vllm/v1/worker/gpu_model_runner.py).

    Args:
        request: vLLM's state of a new request. Text behind the prompt continues from its last
            position, the same in all three.
    """
    extra = request.sampling_params.extra_args if request.sampling_params is not None else None
    if not extra or _KEY not in extra:
        raise RuntimeError(f"request {request.req_id} has no positions")
    positions: Tensor = extra[_KEY]
    request.mrope_positions = positions.T.contiguous()
    request.mrope_position_delta = int(positions[-1].max()) + 1 - len(positions)
