"""The differences between CUDA and CPU. Nothing outside this package names ``torch.cuda``."""

from __future__ import annotations

import torch

from megatron_longrl.platforms.base import Platform


def _detect() -> Platform:
    if torch.cuda.is_available():
        from megatron_longrl.platforms.cuda import CudaPlatform

        return CudaPlatform()
    from megatron_longrl.platforms.cpu import CpuPlatform

    return CpuPlatform()


platform: Platform = _detect()
"""The platform of this process, chosen once at import."""

__all__ = ["Platform", "platform"]
