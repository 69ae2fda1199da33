"""Random numbers that depend on their purpose, and on no layout."""

from __future__ import annotations

import hashlib

import torch


def noise_generator(
    purpose: str, seed: int, iteration: int, prompt: int, index: int
) -> torch.Generator:
    """The numbers of one sample.

    Args:
        purpose: tells the first noise, that of the steps and others apart.
        seed: the seed of the run.
        iteration: the iteration of the run.
        prompt: the index of the prompt among those of the iteration.
        index: the index of the sample among those of the prompt.
    """
    text = f"{purpose}/{seed}/{iteration}/{prompt}/{index}"
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
