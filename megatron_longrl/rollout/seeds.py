"""Random numbers of rollouts: the same for every layout, and for all ranks of a replica."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_longrl.parallel.rank_errors import gather_objects

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from megatron_longrl.experience.sampling_settings import SamplingSettings

SEED_BITS = 62


def group_seeds(seed: int, step: int, uids: Sequence[str], number: int = 0) -> list[int]:
    """One seed per prompt; response j of a prompt draws with ``group_seed + j``.

    A seed depends on the run's seed, the step, the number of the round within it, the prompt's uid,
    and, where a uid occurs more than once in the list, on which occurrence it is: never on the
    layout. Seeds have 62 bits. torch's CPU generator uses the lower 32 of them, which still differ
    between the responses of one group.
    """
    seen: Counter[str] = Counter()
    seeds = []
    for uid in uids:
        text = f"{seed}\0{step}\0{uid}\0{seen[uid]}" + (f"\0{number}" if number else "")
        digest = hashlib.sha256(text.encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS))
        seen[uid] += 1
    return seeds


def request_seeds(
    gloo_group: ProcessGroup, uids: Sequence[str], sampling: SamplingSettings
) -> list[int]:
    """:func:`group_seeds` of a generation, the same on all ranks of ``gloo_group``."""
    seed = sampling.seed
    if seed is None:
        seed = gather_objects(gloo_group, secrets.randbits(SEED_BITS))[0]
    return group_seeds(seed, sampling.step, uids, sampling.round)
