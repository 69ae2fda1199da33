"""A generation on its way to a server, in one file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from megatron_longrl.errors import UserError
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.memory import shared as shared_memory
from megatron_longrl.memory.tensor_file import TensorFile
from megatron_longrl.rollout.requests import PromptRequest
from megatron_longrl.rollout.server.wire import Generation, GenerationFile, read_generation
from megatron_longrl.rollout.vllm.deepstack import with_features
from megatron_longrl.rollout.vllm.positions import with_positions

MASK = torch.tensor([0, 1, 1, 0, 1]).bool()


def requests(device: str, dtype: torch.dtype) -> list[PromptRequest]:
    """One of text, one with positions and DeepStack, one with media that have no tokens."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    positions = with_positions(torch.arange(15).view(5, 3))
    return [
        PromptRequest(7, [0, 1, 2], 30, numbers(3, 6), {}, prefix=[4, 5]),
        PromptRequest(8, [2], 10, numbers(5, 6), positions | with_features(MASK, numbers(3, 12))),
        PromptRequest(
            9, [0], 10, numbers(2, 6), with_features(torch.zeros(2).bool(), numbers(0, 12))
        ),
    ]


def generation(device: str, dtype: torch.dtype = torch.bfloat16) -> Generation:
    sampling = SamplingSettings(n=3, max_tokens=30, stop_strings=("\\n", 'a "quoted" text'))
    origin = ("HuggingFaceTokenizer", "folder")
    return Generation("run:3", [99, 98], origin, sampling, requests(device, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_the_server_reads_what_was_put_into_the_rooms(dtype: torch.dtype) -> None:
    whole = generation("cpu", dtype)
    file = GenerationFile(generation("meta", dtype))
    for room, request in zip(file.buffers, whole.requests, strict=True):
        room.embeddings.copy_(request.embeddings)
        assert (room.features is None) == (not request.extra)
        if room.features is not None:
            room.features.copy_(request.extra["deepstack"][1])
    found = read_generation(file.memory.path)
    file.close()
    assert replace(found, requests=()) == replace(whole, requests=())
    for ours, theirs in zip(whole.requests, found.requests, strict=True):
        assert (ours.seed, list(ours.wanted), ours.max_tokens, list(ours.prefix)) == (
            *(theirs.seed, list(theirs.wanted), theirs.max_tokens),
            list(theirs.prefix),
        )
        assert theirs.embeddings.dtype == dtype
        assert torch.equal(ours.embeddings, theirs.embeddings)
        assert ours.extra.keys() == theirs.extra.keys()
        for name, value in ours.extra.items():
            if isinstance(value, tuple):
                pairs = zip(value, theirs.extra[name], strict=True)
                assert all(torch.equal(one, other) for one, other in pairs)
            else:
                assert torch.equal(value, theirs.extra[name])


def test_what_is_asked_can_become_less() -> None:
    """As when a server died before it had answered all."""
    first = generation("meta")
    file = GenerationFile(first)
    file.buffers[1].embeddings.fill_(3.0)
    rest = replace(first, requests=[replace(request, wanted=[]) for request in first.requests])
    file.ask(rest)
    found = read_generation(file.memory.path)
    assert [request.wanted for request in found.requests] == [[]] * 3
    assert bool((found.requests[1].embeddings == 3.0).all()), "the prompts stay"
    more = [replace(request, wanted=range(100)) for request in first.requests]
    with pytest.raises(ValueError, match="longer"):
        file.ask(replace(first, requests=more))
    file.close()


def test_tensors_are_aligned_whatever_their_order() -> None:
    likes = {
        "a": torch.empty(3, dtype=torch.bfloat16, device="meta"),
        "b": torch.empty(1, dtype=torch.float32, device="meta"),
        "c": torch.empty(2, dtype=torch.int64, device="meta"),
        "none": torch.empty(0, 4, device="meta"),
    }
    for length in range(9):
        file = TensorFile(likes, "x" * length)
        for name, tensor in file.tensors.items():
            assert tensor.data_ptr() % max(tensor.itemsize, 1) == 0
            tensor.fill_(ord(name[0]) % 50)
        with safe_open(file.memory.path, framework="pt") as opened:
            assert set(opened.keys()) == set(likes)
            for name in likes:
                assert torch.equal(opened.get_tensor(name), file.tensors[name])
        file.close()


def test_full_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"shared memory for rollouts: No space left on device"):
        GenerationFile(generation("meta"))
