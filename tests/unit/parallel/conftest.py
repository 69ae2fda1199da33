"""A world of one rank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch.distributed import ProcessGroup


@pytest.fixture(scope="module")
def alone() -> Iterator[ProcessGroup]:
    """A gloo group with this process in it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()
