"""MR-SP of a picture: its tokens are cut into plain chunks, as no attention here is causal.

The text is whole on every rank. The computation on it depends on no shard, so that gradients,
summed over the ranks, are those of one rank.
"""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor
from torch.distributed import ProcessGroup


class TokenShards:
    """The tokens of a picture, divided among the ranks of a group.

    Args:
        count: tokens of the whole picture; the last ranks may have fewer than the others, or none.
    """

    def __init__(self, count: int, group: ProcessGroup) -> None:
        self.count, self._group = count, group
        self._chunk = -(-count // group.size())

    @property
    def mine(self) -> slice:
        """This rank's tokens."""
        first = self._chunk * self._group.rank()
        return slice(min(first, self.count), min(first + self._chunk, self.count))

    def gather(self, shard: Tensor) -> Tensor:
        """[tokens of this rank, ...] -> [tokens, ...], whose gradients come from all ranks."""
        if self._group.size() == 1:
            return shard
        missing = self._chunk - len(shard)
        padding = [0, 0] * (shard.dim() - 1) + [0, missing]
        whole = gather_from_sequence_parallel_region(F.pad(shard, padding), group=self._group)
        return whole[: self.count]
