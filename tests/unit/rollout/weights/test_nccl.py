"""What is gathered at a time on the way to a server by NCCL; the rest needs GPUs."""

from __future__ import annotations

import torch

from megatron_longrl.rollout.weights.nccl import NcclWeights


def test_every_weight_is_in_one_bucket_of_the_given_size() -> None:
    weights = {f"w{k}": torch.randn(k + 1, 8) for k in range(6)}
    buckets = list(NcclWeights(torch.bfloat16, 80)._buckets(weights.items()))
    named = [pair for bucket in buckets for pair in bucket]
    assert [name for name, _ in named] == list(weights)
    assert all(torch.equal(tensor, weights[name].bfloat16()) for name, tensor in named)
    sizes = [sum(tensor.nbytes for _, tensor in bucket) for bucket in buckets]
    # A weight that is larger than a bucket comes alone.
    assert sizes == [16 + 32, 48, 64, 80, 96]
