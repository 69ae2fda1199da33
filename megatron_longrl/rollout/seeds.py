"""The seeds of a generation, which all ranks of a replica must share."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrl.parallel.agree import gather_objects
from megatron_longrl.rollout.sampling import SEED_BITS, group_seeds

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from megatron_longrl.experience.sampling_settings import SamplingSettings


def request_seeds(
    control: ProcessGroup, uids: Sequence[str], sampling: SamplingSettings
) -> list[int]:
    """:func:`group_seeds` of a generation, the same on all ranks of ``control``."""
    seed = sampling.seed
    if seed is None:
        seed = gather_objects(control, secrets.randbits(SEED_BITS))[0]
    return group_seeds(seed, sampling.step, uids, sampling.round)
