"""Weights through one bucket: which come, in what order, and how much memory that takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_longrl.memory.shared import map_path
from megatron_longrl.rollout.weights.buckets import WeightBuckets

SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.q_proj.bias": (16,),
    "model.layers.0.self_attn.k_proj.weight": (8, 16),
    "model.layers.0.self_attn.v_proj.weight": (8, 16),
    "model.layers.0.self_attn.o_proj.weight": (16, 16),
    "model.layers.0.mlp.gate_proj.weight": (24, 16),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.norm.weight": (16,),
}
QKV = [name for name in SHAPES if ".q_" in name or ".k_" in name or ".v_" in name]


class Receiver:
    """Takes the buckets from another mapping of the memory, as a server does."""

    def __init__(self, buckets: WeightBuckets) -> None:
        self._memory = map_path(buckets.memory.path, buckets.memory.nbytes)
        self.weights: dict[str, Tensor] = {}
        self.calls: list[str] = []

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append("bucket")
        for name, dtype, shape, offset in zip(
            *(update_info[key] for key in ("names", "dtype_names", "shapes", "offsets")),
            strict=True,
        ):
            of = getattr(torch, dtype)
            end = offset + torch.Size(shape).numel() * of.itemsize
            assert end <= update_info["end"] <= len(self._memory)
            self.weights[name] = self._memory[offset:end].view(of).view(shape).clone()

    def finish_weight_update(self, weight_version: str) -> None:
        self.calls.append(weight_version)


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def shapes() -> dict[str, torch.Size]:
    return {name: torch.Size(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nbytes", [1, 4000, 1 << 20])
def test_every_weight_arrives_whatever_the_size(dtype: torch.dtype, nbytes: int) -> None:
    buckets = WeightBuckets(shapes(), dtype, nbytes)
    receiver = Receiver(buckets)
    for seed in (1, 2):
        sent = buckets.send(weights(seed).items(), receiver, f"run:{seed}")
        assert sent.names == list(SHAPES)
        assert receiver.weights.keys() == SHAPES.keys()
        for name, tensor in weights(seed).items():
            assert torch.equal(receiver.weights[name], tensor.to(dtype)), name
    whole = sum(tensor.numel() for tensor in weights(1).values()) * dtype.itemsize
    assert buckets.memory.nbytes <= max(nbytes, 24 * 16 * 2 * dtype.itemsize)
    assert sent.buckets >= whole / buckets.memory.nbytes
    buckets.memory.close()


def test_only_layers_that_have_changed_come() -> None:
    buckets = WeightBuckets(shapes(), torch.float32, 1 << 20)
    receiver, now = Receiver(buckets), weights(1)
    buckets.send(now.items(), receiver, "run:1")
    assert receiver.calls == ["start", "bucket", "run:1"]
    assert buckets.send(now.items(), receiver, "run:2").names == []
    assert receiver.calls[3:] == ["run:2"], "nothing but the name"
    now[QKV[2]] = now[QKV[2]] + 1
    assert buckets.send(now.items(), receiver, "run:3").names == QKV
    buckets.forget()
    assert buckets.send(now.items(), receiver, "run:4").names == list(SHAPES)


def test_nothing_is_known_of_a_server_after_a_failure() -> None:
    buckets = WeightBuckets(shapes(), torch.float32, 4000)
    receiver = Receiver(buckets)
    buckets.send(weights(1).items(), receiver, "run:1")

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from list(weights(2).items())[:5]
        raise KeyError("gone")

    with pytest.raises(KeyError):
        buckets.send(broken(), receiver, "run:2")
    assert buckets.send(weights(1).items(), receiver, "run:3").names == list(SHAPES)


def test_a_layer_in_two_pieces_is_refused() -> None:
    buckets = WeightBuckets(shapes(), torch.float32, 1 << 20)
    named = list(weights(1).items())
    with pytest.raises(RuntimeError, match="qkv_proj do not come behind each other"):
        buckets.send([*named[:2], named[5], *named[2:5], *named[6:]], Receiver(buckets), "run:1")


def test_extra_memory_is_one_bucket() -> None:
    """256 MiB of weights, made one by one, go through a bucket of 8."""
    mib = 1 << 20
    many = {f"model.layers.{i}.o_proj.weight": torch.Size((mib, 1)) for i in range(64)}
    before = _resident()
    buckets = WeightBuckets(many, torch.float32, 8 * mib)

    class Nobody(Receiver):
        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.calls.append("bucket")

    named = ((name, torch.full(shape, 1.0)) for name, shape in many.items())
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    assert buckets.send(named, Nobody(buckets), "run:1").buckets == 32
    # The bucket and, made by the stream, two tensors of 4 MiB; and what else the process does.
    assert _resident("VmHWM") - before <= (8 + 2 * 4 + 16) * mib


def _resident(what: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) << 10
    raise AssertionError(what)
