"""Random numbers of responses, and which engine serves which prompts: the same for every layout."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

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


def balanced_shares(costs: Sequence[float], parts: int) -> list[range]:
    """Contiguous shares of a list of costs, of about equal sums; some are empty if items are few.

    Item i goes to the part in which the middle of its stretch of the total cost lies.
    """
    total = sum(costs)
    share_of = []
    before = 0.0
    for cost in costs:
        share_of.append(min(int((before + cost / 2) * parts / total), parts - 1))
        before += cost
    bounds = [sum(share < part for share in share_of) for part in range(parts + 1)]
    return [range(bounds[part], bounds[part + 1]) for part in range(parts)]
