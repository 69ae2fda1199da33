"""States of all random generators of a rank, in one safetensors file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from megatron.core.tensor_parallel.random import convert_cuda_rng_state, get_cuda_rng_tracker
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_longrl.platforms import platform

_TRACKER = "megatron."


def rank_file(folder: Path, rank: int) -> Path:
    """The file of a rank."""
    return folder / f"rank_{rank:05d}.safetensors"


def save_rng_state(path: Path) -> None:
    """Write the states of Python's, numpy's, torch's and megatron-core's generators."""
    save_file(_capture(), path)


def load_rng_state(path: Path) -> None:
    """Restore what :func:`save_rng_state` wrote."""
    _restore(load_file(path))


def _capture() -> dict[str, Tensor]:
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        # NaN stands for "no second Gaussian number is kept".
        "python_gauss": torch.tensor([np.nan if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "device": platform.rng_state().cpu(),
    }
    for name, state in get_cuda_rng_tracker().get_states().items():
        tensors[_TRACKER + name] = convert_cuda_rng_state(state).cpu()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _restore(tensors: dict[str, Tensor]) -> None:
    version, *words = tensors["python"].tolist()
    gauss = tensors["python_gauss"].item()
    random.setstate((version, tuple(words), None if np.isnan(gauss) else gauss))
    *keys, position, has_gauss = tensors["numpy"].tolist()
    state = ("MT19937", np.array(keys, np.uint32), position, has_gauss)
    np.random.set_state((*state, tensors["numpy_gauss"].item()))
    torch.set_rng_state(tensors["torch"])
    platform.set_rng_state(tensors["device"])
    tracker = get_cuda_rng_tracker()
    graphable = getattr(tracker, "use_cudagraphable_rng", False)
    tracker.set_states(
        {
            name.removeprefix(_TRACKER): convert_cuda_rng_state(state, to_graphable=graphable)
            for name, state in tensors.items()
            if name.startswith(_TRACKER)
        }
    )
