"""Process groups that are made once per launch and lent to one test after the other.

A gloo group costs a rendezvous, and threads that wake a hundred times a second until the end of the
process. A run makes about forty groups; groups of hundreds of tests take most of two cores.
"""

from __future__ import annotations

from typing import Any

Ranks = tuple[int, ...]


class KeptGroups:
    """Stands before ``dist.new_group`` and ``dist.destroy_process_group``.

    Groups with equal ranks stay apart: the n-th of them that a test asks for is the n-th that the
    tests before it had. Two threads of a test never find themselves in one group, therefore.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[Ranks, str, int], Any] = {}
        self._asked: dict[tuple[Ranks, str], int] = {}

    def install(self) -> None:
        """Take the place of torch's functions, for libraries too."""
        import torch.distributed as dist  # which a rank's guard does without

        if dist.new_group == self.new_group:
            return
        self._new, self._destroy = dist.new_group, dist.destroy_process_group
        dist.new_group = self.new_group  # type: ignore[assignment]
        dist.destroy_process_group = self.destroy_process_group

    def __len__(self) -> int:
        """Number of kept groups."""
        return len(self._groups)

    def begin_test(self) -> None:
        """All groups are free again."""
        self._asked.clear()

    def new_group(
        self, ranks: Any = None, timeout: Any = None, backend: str | None = None, **options: Any
    ) -> Any:
        """See torch. A group with options that make it unlike the others is not kept."""
        if options.get("pg_options") is not None or options.get("use_local_synchronization"):
            return self._new(ranks, timeout=timeout, backend=backend, **options)
        import torch.distributed as dist

        members = tuple(range(dist.get_world_size()) if ranks is None else ranks)
        kind = (members, backend or dist.get_backend())
        number = self._asked.get(kind, 0)
        self._asked[kind] = number + 1
        if (*kind, number) not in self._groups:
            self._groups[*kind, number] = self._new(ranks, timeout=timeout, backend=backend)
        return self._groups[*kind, number]

    def destroy_process_group(self, group: Any = None) -> None:
        """See torch. A kept group stays; without a group all of them end."""
        if group is None:
            self._groups.clear()
            self._asked.clear()
        elif any(group is kept for kept in self._groups.values()):
            return
        self._destroy(group)
