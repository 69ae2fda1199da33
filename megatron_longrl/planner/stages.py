"""The assignment of sequences to MR-SP ranks: how many ranks share each sequence, and which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_longrl.media.partition import balance_greedy
from megatron_longrl.planner.cost import HardwareProfile, ModelCost, SequenceSize


@dataclass(frozen=True)
class SequencePlan:
    """The sequences, by their indices, that each rank runs."""

    sequences: Mapping[int, list[list[int]]]
    """Keys are numbers of ranks that share a sequence, the largest first. The value lists the
    sequences of each group of so many neighbouring ranks. All ranks run their sequences in this
    order, so that none waits in a ring."""

    def of_rank(self, rank: int) -> Iterator[tuple[int, list[int]]]:
        """Yield (number of sharing ranks, sequences) in the order in which a rank runs them."""
        for degree, groups in self.sequences.items():
            yield degree, groups[rank // degree]


def plan_sequences(
    sequences: Sequence[SequenceSize],
    mode: str,
    degrees: Sequence[int],
    *,
    cost: ModelCost,
    hardware: HardwareProfile,
    passes: int,
    most_tokens: int,
) -> SequencePlan:
    """Choose the fastest way to run the sequences of a replica on its MR-SP ranks.

    The search covers plans in which the most expensive sequences are shared by one number of ranks
    and the others by a smaller number.

    Args:
        mode: ``--mrsp-mode``: ``none`` and ``encode`` share no sequence, ``full`` shares all
            sequences between all ranks, ``auto`` chooses.
        degrees: numbers of ranks that may share a sequence, increasing from 1 to all.
        passes: number of forward passes of every sequence, see :class:`ModelCost`.
        most_tokens: the largest number of tokens of a sequence on one rank with ``auto``, as more
            may not fit into memory.
    """
    seconds = {d: [cost.seconds(s, hardware, passes, d) for s in sequences] for d in degrees}
    if mode != "auto":
        fixed = degrees[-1] if mode == "full" else 1
        return _scheduled([fixed] * len(sequences), seconds)[0]
    most = degrees[-1]
    least = [next((d for d in degrees if s.tokens <= d * most_tokens), most) for s in sequences]
    order = sorted(range(len(sequences)), key=lambda i: -seconds[1][i])
    best, chosen = float("inf"), None
    for low in degrees:
        for high in [d for d in degrees if d >= low]:
            # To share few sequences more evens out the ranks' loads; else all are treated alike.
            for count in range(1, min(2 * most, len(sequences)) + 1) if high > low else [0]:
                wanted = [low] * len(sequences)
                for i in order[:count]:
                    wanted[i] = high
                plan, span = _scheduled([*map(max, wanted, least)], seconds)
                if span < best:
                    best, chosen = span, plan
    assert chosen is not None, "a group of ranks has at least one degree"
    return chosen


def _scheduled(
    wanted: Sequence[int], seconds: Mapping[int, Sequence[float]]
) -> tuple[SequencePlan, float]:
    """Assign sequences to groups of ranks of the wanted sizes; return its makespan."""
    ranks = max(seconds)
    ready = [0.0] * ranks
    plan = {}
    for degree in sorted(seconds, reverse=True):
        sequences = [i for i, d in enumerate(wanted) if d == degree]
        # A group begins when the last of its ranks is there.
        starts = [max(ready[r : r + degree]) for r in range(0, ranks, degree)]
        dealt = balance_greedy([seconds[degree][i] for i in sequences], ranks // degree, starts)
        plan[degree] = [[sequences[k] for k in part] for part in dealt]
        for group, (start, part) in enumerate(zip(starts, plan[degree], strict=True)):
            if part:
                end = start + sum(seconds[degree][i] for i in part)
                ready[group * degree : (group + 1) * degree] = [end] * degree
    return SequencePlan(plan), max(ready)
