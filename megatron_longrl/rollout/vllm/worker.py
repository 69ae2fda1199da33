"""Set-up of the workers of a tensor-parallel server. vLLM spawns them without the state of the
server's process, and imports this module in each before it builds its worker."""

from __future__ import annotations

import os

from megatron_longrl.platforms import platform
from megatron_longrl.rollout.vllm.process_isolation import INSTANCE, name_shared_memory


class WorkerExtension:
    """Adds nothing to vLLM's worker but what importing it does."""


if platform.name == "cpu":
    import megatron_longrl.rollout.vllm.weight_transfer  # noqa: F401  makes itself known to vLLM

    name_shared_memory(os.environ[INSTANCE])
