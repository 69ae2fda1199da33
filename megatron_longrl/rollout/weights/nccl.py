"""Weights to a server on other GPUs, by NCCL, as an engine of vLLM's weight transfer receives them.

The server runs vLLM's own ``NCCLWeightTransferEngine`` (vllm/distributed/weight_transfer), which
loads the whole model anew: all weights come in every update. The trainer's leader is rank 0 of the
communicator, the server's workers follow. Never run: see docs/cuda.md.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_longrl.platforms import platform
from megatron_longrl.rollout.weights.buckets import Sent, WeightReceiver

if TYPE_CHECKING:
    from megatron_longrl.rollout.server.client import ServerClient

BACKEND = "nccl"
"""vLLM's name for it."""

Named = tuple[str, Tensor]


class NcclWeights:
    """A :class:`~megatron_longrl.rollout.weights.buckets.WeightSender`.

    Args:
        dtype: the server's; weights of another are cast.
        nbytes: of the weights that are gathered at a time.
    """

    def __init__(self, dtype: torch.dtype, nbytes: int) -> None:
        self._dtype = dtype
        self._nbytes = nbytes
        self._group: Any = None
        self._thread = ThreadPoolExecutor(1, "weights")

    def connect(self, server: ServerClient) -> None:
        """Open a communicator with all workers of the server, which wait for it meanwhile."""
        from vllm.distributed.weight_transfer.nccl_common import (
            NCCLWeightTransferInitInfo,
            trainer_init,
            worker_init_payload,
        )

        self.close()
        with socket.create_server(("", 0)) as probe:
            port = probe.getsockname()[1]
        info = NCCLWeightTransferInitInfo(
            master_address=socket.gethostname(),
            master_port=port,
            rank_offset=1,
            world_size=1 + server.describe()["settings"]["tensor_parallel_size"],
            packed=False,
        )
        waiting = self._thread.submit(server.init_weight_transfer_engine, worker_init_payload(info))
        self._group = trainer_init(info)
        waiting.result()

    def send(self, named: Iterable[Named], server: WeightReceiver, version: str) -> Sent:
        """Give the server all weights."""
        assert self._group is not None, "connect() comes first"
        sent = Sent()
        server.start_weight_update()
        for bucket in self._buckets(named):
            names = [name for name, _ in bucket]
            told = {
                "names": names,
                "dtype_names": [str(self._dtype).removeprefix("torch.")] * len(names),
                "shapes": [list(tensor.shape) for _, tensor in bucket],
            }
            waiting = self._thread.submit(server.update_weights, told)
            for _, tensor in bucket:
                self._group.broadcast(tensor, src=0)
            platform.synchronize()
            waiting.result()
            sent.names += names
            sent.nbytes += sum(tensor.nbytes for _, tensor in bucket)
            sent.buckets += 1
        server.finish_weight_update(version)
        return sent

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
