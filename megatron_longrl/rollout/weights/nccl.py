"""Weights to a server on other GPUs, by NCCL, as an engine of vLLM's weight transfer receives them.

The server runs vLLM's own ``NCCLWeightTransferEngine`` (vllm/distributed/weight_transfer), which
loads the whole model anew: all weights come in every update. The trainer's leader is rank 0 of the
communicator, the server's workers follow. Never run: see docs/cuda.md.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.platforms import platform
from megatron_longrl.processes.daemon_thread import in_daemon_thread
from megatron_longrl.rollout.weights.buckets import TransferStats, WeightServer

if TYPE_CHECKING:
    from megatron_longrl.rollout.server.client import ServerClient

BACKEND = "nccl"
"""vLLM's name for it."""

Named = tuple[str, Tensor]
T = TypeVar("T")


class NcclWeights:
    """A :class:`~megatron_longrl.rollout.weights.buckets.WeightSender`.

    Args:
        dtype: the server's; weights of another are cast.
        nbytes: the number of bytes of weights that are gathered at a time.
        timeout_seconds: the longest wait for the server's workers to take part.
    """

    def __init__(self, dtype: torch.dtype, nbytes: int, timeout_seconds: float) -> None:
        self._dtype = dtype
        self._nbytes = nbytes
        self._timeout_seconds = timeout_seconds
        self._group: Any = None
        self._meeting_place = ""

    def connect(self, server: ServerClient) -> None:
        """Open a communicator with all workers of the server.

        Raises:
            UserError: a worker does not come to the address of this process in time.
        """
        from vllm.distributed.weight_transfer.nccl_common import (
            NCCLWeightTransferInitInfo,
            trainer_init,
            worker_init_payload,
        )

        self.close()
        host = server.local_host()
        with socket.create_server((host, 0)) as probe:
            port = probe.getsockname()[1]
        self._meeting_place = f"{host}:{port}"
        info = NCCLWeightTransferInitInfo(
            master_address=host,
            master_port=port,
            rank_offset=1,
            world_size=1 + server.describe()["settings"]["tensor_parallel_size"],
            packed=False,
        )
        self._group = self._with_server(
            lambda: server.init_weight_transfer_engine(worker_init_payload(info)),
            lambda: trainer_init(info),
        )

    def send(self, named: Iterable[Named], server: WeightServer, version: str) -> TransferStats:
        """Give the server all weights.

        Raises:
            UserError: a worker fails, or does not take a bucket in time.
        """
        assert self._group is not None, "connect() comes first"
        sent = TransferStats()
        server.start_weight_update()
        for bucket in self._buckets(named):
            self._send_bucket(bucket, server)
            sent.names += [name for name, _ in bucket]
            sent.nbytes += sum(tensor.nbytes for _, tensor in bucket)
            sent.buckets += 1
        server.finish_weight_update(version)
        return sent

    def _send_bucket(self, bucket: Sequence[Named], server: WeightServer) -> None:
        names = [name for name, _ in bucket]
        update_info = {
            "names": names,
            "dtype_names": [str(self._dtype).removeprefix("torch.")] * len(names),
            "shapes": [list(tensor.shape) for _, tensor in bucket],
        }

        def broadcast() -> None:
            for _, tensor in bucket:
                self._group.broadcast(tensor, src=0)
            platform.synchronize()

        self._with_server(lambda: server.update_weights(update_info), broadcast)

    def _with_server(self, ask: Callable[[], None], take_part: Callable[[], T]) -> T:
        """Ask the server for its part of an exchange, and do this process's part meanwhile.

        A worker that has failed never joins a collective, which waits for it without end: the
        exchange is over as soon as either side fails, and what still waits is left behind.
        """
        # The current GPU and stream are those of a thread, and weights were made on the caller's.
        on_device = platform.as_this_thread(take_part)
        asked = in_daemon_thread(ask, "weights-server")
        taken = in_daemon_thread(on_device, "weights-nccl")
        sides: tuple[Future[Any], ...] = (asked, taken)
        ended = wait(sides, self._timeout_seconds, FIRST_EXCEPTION).done
        for side in sides:
            if side in ended:
                side.result()
        if len(ended) < len(sides):
            raise UserError(
                f"the rollout server's workers have not come to {self._meeting_place} to receive "
                f"weights over NCCL for {self._timeout_seconds:g} s: the address must be reachable "
                "from them (NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO); else raise --rollout-timeout"
            )
        return taken.result()

    def close(self) -> None:
        """Leave the communicator. Idempotent."""
        if self._group is not None:
            self._group.destroy()
            self._group = None

    def _buckets(self, named: Iterable[Named]) -> Iterator[list[Named]]:
        bucket: list[Named] = []
        held = 0
        for name, tensor in named:
            tensor = tensor.detach().to(platform.device, self._dtype).contiguous()
            if bucket and held + tensor.nbytes > self._nbytes:
                yield bucket
                bucket, held = [], 0
            bucket.append((name, tensor))
            held += tensor.nbytes
        if bucket:
            yield bucket
