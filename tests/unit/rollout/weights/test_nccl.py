"""The way of weights by NCCL, with vLLM's group over TCP in the place of the communicator.

``StatelessProcessGroup`` is what vLLM itself meets by before NCCL; its broadcast goes by the store.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
import torch
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import nccl_common
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)

from megatron_longrl.errors import UserError
from megatron_longrl.rollout.server.client import ServerClient
from megatron_longrl.rollout.weights.nccl import NcclWeights

WITHOUT_END = 60.0


class Worker:
    """A server of one worker, which takes part as vLLM's engine of weight transfer does."""

    def __init__(self, fails_at: str = "", waits_at: str = "") -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.version = ""
        self._fails_at, self._waits_at = fails_at, waits_at
        self._group: StatelessProcessGroup | None = None

    def local_host(self) -> str:
        return "127.0.0.1"

    def describe(self) -> dict[str, Any]:
        return {"settings": {"tensor_parallel_size": 1}}

    def init_weight_transfer_engine(self, payload: dict[str, Any]) -> None:
        self._meet("init")
        info = NCCLWeightTransferInitInfo(**payload)
        assert info.master_address is not None and info.master_port is not None
        meeting = (info.master_address, info.master_port, info.rank_offset, info.world_size)
        self._group = StatelessProcessGroup.create(*meeting)

    def start_weight_update(self) -> None:
        self.weights.clear()

    def update_weights(self, told: dict[str, Any]) -> None:
        self._meet("update")
        info = NCCLWeightTransferUpdateInfo(**told)
        assert self._group is not None
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            tensor = self._group.broadcast(torch.empty(0), src=0)
            assert (tensor.dtype, list(tensor.shape)) == (getattr(torch, dtype), shape)
            self.weights[name] = tensor

    def finish_weight_update(self, version: str) -> None:
        self.version = version

    def _meet(self, phase: str) -> None:
        if phase == self._fails_at:
            raise UserError(f"a worker has failed at {phase}")
        if phase == self._waits_at:
            time.sleep(WITHOUT_END)


class Communicator:
    """What ``trainer_init`` returns; a peer that does not receive is waited for, as in NCCL."""

    def __init__(self, info: NCCLWeightTransferInitInfo) -> None:
        assert info.master_address is not None and info.master_port is not None
        meeting = (info.master_address, info.master_port, 0, info.world_size)
        self._group = StatelessProcessGroup.create(*meeting)
        self.has_peer = True

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        if not self.has_peer:
            time.sleep(WITHOUT_END)
        self._group.broadcast(tensor, src)

    def destroy(self) -> None:
        """The store ends with its last user."""


@pytest.fixture(autouse=True)
def _over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_common, "trainer_init", Communicator)


def sender(seconds: float = 30.0) -> NcclWeights:
    return NcclWeights(torch.bfloat16, 80, seconds)


def connect(way: NcclWeights, worker: Any) -> None:
    way.connect(worker)


def weights() -> dict[str, torch.Tensor]:
    return {f"w{k}": torch.randn(k + 1, 8) for k in range(6)}


def test_every_weight_is_in_one_bucket_of_the_given_size() -> None:
    named = weights()
    buckets = list(sender()._buckets(named.items()))
    pairs = [pair for bucket in buckets for pair in bucket]
    assert [name for name, _ in pairs] == list(named)
    assert all(torch.equal(tensor, named[name].bfloat16()) for name, tensor in pairs)
    sizes = [sum(tensor.nbytes for _, tensor in bucket) for bucket in buckets]
    # A weight that is larger than a bucket comes alone.
    assert sizes == [16 + 32, 48, 64, 80, 96]


def test_a_worker_gets_all_weights_and_the_version() -> None:
    named, way, worker = weights(), sender(), Worker()
    connect(way, worker)
    for version in ("run:1", "run:2"):
        sent = way.send(named.items(), worker, version)
        assert (sent.names, sent.buckets, worker.version) == (list(named), 5, version)
        assert all(torch.equal(worker.weights[name], named[name].bfloat16()) for name in named)
    way.close()


def test_a_worker_that_fails_is_told_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="a worker has failed at init"):
        connect(sender(), Worker(fails_at="init"))
    way, worker = sender(), Worker(fails_at="update")
    connect(way, worker)
    way._group.has_peer = False
    with pytest.raises(UserError, match="a worker has failed at update"):
        way.send(weights().items(), worker, "run:1")
    assert time.monotonic() - began < WITHOUT_END / 2, "the collective was waited for"


def test_a_worker_that_never_comes_is_told_with_the_address() -> None:
    with pytest.raises(UserError, match=r"not come to 127\.0\.0\.1:\d+ .*--rollout-timeout"):
        connect(sender(0.5), Worker(waits_at="init"))


def test_workers_meet_at_the_address_that_the_server_is_reached_by() -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        client = ServerClient(f"127.0.0.2:{server.getsockname()[1]}", 5.0, "token")
        connected = client.local_host()
    assert connected.startswith("127.0.0."), "the interface on the way, not the host's name"
