"""Two ranks: frames spread and put together, gradients brought home, shards, agreement.

The twins decode and encode whole videos on every rank by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.errors import UserError
from megatron_longrl.media.content_hash import content_hash
from megatron_longrl.media.deadline import go_on
from megatron_longrl.media.encoder import EncodedMedia, MediaEncoder, UnitEncoder
from megatron_longrl.media.loader import MediaLoader
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video import decode as decode_module
from megatron_longrl.media.modalities.video import pyav
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.media.partition import Cut
from megatron_longrl.media.read_policy import ReadPolicy
from megatron_longrl.media.spec import MediaSpec, UnitTensors
from megatron_longrl.parallel.logprobs import selected_logprobs
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.parallel.sequence import (
    shard_sequence,
    unshard_sequence,
)

SIZE, TOKENS, HIDDEN = 8, 3, 4
VIEW = PreprocessSpec(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3, tokens_per_unit=TOKENS)


class ToyEncoder(torch.nn.Module):
    """[f, 3, S, S] -> [f, tokens, h]; not linear, so that a mixed-up gradient shows."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        width = 3 * SIZE * SIZE
        self.weight = torch.nn.Parameter(
            torch.randn(TOKENS * HIDDEN, width, generator=generator) / width**0.5
        )

    def forward(self, pixels: Tensor, view: PreprocessSpec | None = None) -> Tensor:
        return torch.tanh(pixels.flatten(1) @ self.weight.t()).unflatten(1, (TOKENS, HIDDEN))


def both() -> ProcessGroup:
    """Both ranks."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def build(encoder: torch.nn.Module, chunk_frames: int = 4, cut: Cut = "always") -> MediaEncoder:
    """Stage 1 with both ranks as one replica."""
    toy = UnitEncoder(
        module=encoder,
        modalities=("video",),
        width=HIDDEN,
        chunk_units=lambda view: chunk_frames // view.frames_per_unit,
        group=both(),
    )
    return MediaEncoder(
        {"toy": toy},
        both(),
        dtype=torch.float32,
        device=torch.device("cpu"),
        cut=cut,
    )


def write_videos(folder: Path, *lengths: int) -> list[VideoSpec]:
    """One video of noise for every length; all ranks get the same specifications."""
    if dist.get_rank() == 0:
        generator = np.random.default_rng(0)
        for number, frames in enumerate(lengths):
            with av.open(str(folder / f"{number}.webm"), "w") as container:
                stream = container.add_stream("libvpx-vp9", rate=Fraction(4))
                stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
                for _ in range(frames):
                    image = generator.integers(0, 255, (16, 24, 3), dtype=np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(stream.encode())
    dist.barrier()
    return [
        VideoSpec(str(path), content_hash(path), tuple(range(frames)), VIEW)
        for frames, path in ((n, folder / f"{k}.webm") for k, n in enumerate(lengths))
    ]


def broken(folder: Path, frames: int) -> VideoSpec:
    """A specification of a file that is no video."""
    path = folder / "broken.webm"
    if dist.get_rank() == 0:
        path.write_bytes(b"not a video" * 50)
    dist.barrier()
    return VideoSpec(str(path), content_hash(path), tuple(range(frames)), VIEW)


def check_embeddings(encoded: EncodedMedia, specs: list[VideoSpec], encoder: ToyEncoder) -> None:
    """Every video has its own embeddings, in its own order, on this rank."""
    assert list(encoded.embeddings) == [spec.key() for spec in specs]
    for spec in specs:
        with torch.no_grad():
            expected = encoder(spec.frames()).flatten(0, 1)
        torch.testing.assert_close(encoded.embeddings[spec.key()], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_frames", [1, 5, 64])
def test_uneven_frames_of_several_videos_in_chunks_of_any_size(shared_path, chunk_frames):
    specs = write_videos(shared_path, 30, 1, 6)
    encoder = ToyEncoder()
    encoded = build(encoder, chunk_frames).encode(specs)
    check_embeddings(encoded, specs, encoder)
    assert encoded.failed == {}
    counts = gather_objects(both(), encoded.counts["frames"])
    assert counts == [18, 19], "37 frames, each decoded and encoded by one rank"


def test_a_video_that_is_named_twice_is_encoded_once(shared_path):
    specs = write_videos(shared_path, 3, 2)
    encoder = ToyEncoder()
    encoded = build(encoder).encode([specs[1], specs[0], specs[1]])
    check_embeddings(encoded, [specs[1], specs[0]], encoder)
    assert sum(gather_objects(both(), encoded.counts["frames"])) == 5


def test_one_frame_leaves_a_rank_without_work_but_not_outside_defect_10(shared_path):
    specs = write_videos(shared_path, 1)
    encoder = ToyEncoder()
    encoded = build(encoder).encode(specs, for_backward=True)
    check_embeddings(encoded, specs, encoder)
    assert gather_objects(both(), encoded.counts["frames"]) == [0, 1]
    check_gradient(build(encoder), encoded, specs, encoder)


@pytest.mark.parametrize("for_backward", [True, False])
def test_no_frames_at_all_defect_10(for_backward):
    encoder = ToyEncoder()
    stage = build(encoder)
    encoded = stage.encode([], for_backward=for_backward)
    assert encoded.embeddings == {}
    assert encoded.failed == {}
    if for_backward:
        stage.backward("toy", encoded, {})
        assert encoder.weight.grad is None


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_broken_video_fails_alone_and_on_all_ranks_defect_8(shared_path, place):
    specs = write_videos(shared_path, 9, 2, 5)
    bad = broken(shared_path, 7)
    encoder = ToyEncoder()
    stage = build(encoder)
    encoded = stage.encode([*specs[:place], bad, *specs[place:]], for_backward=True)
    assert list(encoded.failed) == [bad.key()]
    assert "broken.webm" in encoded.failed[bad.key()]
    assert len(set(gather_objects(both(), encoded.failed[bad.key()]))) == 1
    # Nothing stands in for it, and the others are what they are without it.
    check_embeddings(encoded, specs, encoder)
    check_gradient(stage, encoded, specs, encoder)


def test_all_videos_broken_defect_8(shared_path):
    bad = broken(shared_path, 3)
    encoder = ToyEncoder()
    stage = build(encoder)
    encoded = stage.encode([bad], for_backward=True)
    assert list(encoded.failed) == [bad.key()]
    assert encoded.embeddings == {}
    stage.backward("toy", encoded, {})


def test_a_decoder_that_crashes_on_one_rank_ends_all_defect_10(shared_path, monkeypatch):
    specs = write_videos(shared_path, 4)

    def crash(requests: object) -> list[Tensor]:
        raise MemoryError("no room for frames")

    stage = build(ToyEncoder())
    if dist.get_rank() == 1:
        monkeypatch.setattr(stage.loader, "load", crash)
    with pytest.raises(UserError, match="MemoryError: no room for frames"):
        stage.encode(specs)


def test_a_decoder_without_an_end_on_one_rank_costs_its_video_on_both(shared_path, monkeypatch):
    """Its rank asks for it once, though it had more pieces of it to decode."""
    endless, good = write_videos(shared_path, 12, 3)
    begun: list[str] = []

    def decode(path: str, indices: Sequence[int], chunk_bytes: int) -> Iterator[object]:
        begun.append(path)
        while path == endless.path and dist.get_rank() == 1:
            go_on()
        yield from pyav.decode_in_chunks(path, indices, chunk_bytes)

    monkeypatch.setattr(decode_module, "decode_in_chunks", decode)
    stage = build(ToyEncoder(), chunk_frames=1)
    stage.loader = MediaLoader(ReadPolicy(seconds=2.0))
    stage.loaded_bytes = 1
    encoded = stage.encode([endless, good])
    assert list(encoded.failed) == [endless.key()] and list(encoded.embeddings) == [good.key()]
    reason = f"{endless.path}: did not answer within 2 seconds (--media-timeout)"
    assert encoded.failed[endless.key()] == reason
    assert begun.count(endless.path) == (1 if dist.get_rank() == 1 else 7)
    stage.loader.close()


def gradient_parts(specs: list[VideoSpec], rank: int) -> dict[str, Tensor | None]:
    """A rank's part of the embeddings' gradients; rank 1 says nothing about the first video."""
    parts: dict[str, Tensor | None] = {}
    for number, spec in enumerate(specs):
        generator = torch.Generator().manual_seed(10 * number + rank)
        rows = len(spec.frame_indices) * TOKENS
        parts[spec.key()] = torch.randn(rows, HIDDEN, generator=generator)
    if rank == 1 and specs:
        parts[specs[0].key()] = None
        if len(specs) > 1:
            del parts[specs[1].key()]
    return parts


def check_gradient(
    stage: MediaEncoder, encoded: EncodedMedia, specs: list[VideoSpec], encoder: ToyEncoder
) -> None:
    """The sum of the ranks' weight gradients is that of one process with all frames."""
    assert encoder.weight.grad is None
    stage.backward("toy", encoded, gradient_parts(specs, dist.get_rank()))
    given = encoder.weight.grad
    total = torch.zeros_like(encoder.weight) if given is None else given.clone()
    dist.all_reduce(total)
    twin = ToyEncoder()
    for spec in specs:
        output = twin(spec.frames()).flatten(0, 1)
        for rank in range(dist.get_world_size()):
            part = gradient_parts(specs, rank).get(spec.key())
            if part is not None:
                output.backward(part, retain_graph=True)
    assert twin.weight.grad is not None
    assert twin.weight.grad.abs().max() > 0.1
    torch.testing.assert_close(total, twin.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_frames", [1, 4, 64])
def test_the_gradient_is_that_of_one_process(shared_path, chunk_frames):
    specs = write_videos(shared_path, 30, 1, 6)
    encoder = ToyEncoder()
    stage = build(encoder, chunk_frames)
    check_gradient(stage, stage.encode(specs, for_backward=True), specs, encoder)


@pytest.mark.parametrize("chunk_frames", [4, 64])
def test_whole_videos_in_any_order_and_their_gradient(shared_path, chunk_frames):
    specs = write_videos(shared_path, 5, 7, 8, 4)
    encoder = ToyEncoder()
    stage = build(encoder, chunk_frames, "never")
    encoded = stage.encode(specs, for_backward=True)
    check_embeddings(encoded, specs, encoder)
    assert encoded.units["toy"].owned == [[(12 * TOKENS, 12 * TOKENS)], [(0, 12 * TOKENS)]]
    check_gradient(stage, encoded, specs, encoder)


@pytest.mark.parametrize("chunk_frames", [17, 18, 19])
def test_a_share_that_fits_a_chunk_is_encoded_once(shared_path, chunk_frames):
    specs = write_videos(shared_path, 30, 1, 6)
    encoder = ToyEncoder()
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    stage = build(encoder, chunk_frames)
    encoded = stage.encode(specs, for_backward=True)
    check_gradient(stage, encoded, specs, encoder)
    share = 18 + dist.get_rank()
    times = 1 if share <= chunk_frames else 2
    assert sum(seen) == times * share


def test_frames_are_decoded_a_bounded_number_at_a_time(shared_path, monkeypatch):
    specs = write_videos(shared_path, 30, 1, 6)
    encoder = ToyEncoder()
    stage = build(encoder, chunk_frames=3)
    asked: list[int] = []
    load = stage.loader.load

    def note(requests: Sequence[tuple[MediaSpec, range]]) -> list[UnitTensors | MediaError]:
        asked.append(sum(len(units) for _, units in requests))
        return load(requests)

    monkeypatch.setattr(stage.loader, "load", note)
    stage.loaded_bytes = 7 * 3 * SIZE * SIZE * 4
    encoded = stage.encode(specs)
    check_embeddings(encoded, specs, encoder)
    assert asked == [6, 6, 6, *([1] if dist.get_rank() else [])], "whole chunks within the bound"


@pytest.mark.parametrize("vocab_size", [20, 17, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_over_a_split_vocabulary(vocab_size, temperature):
    # 9 of 20 rows are tokens: the second rank holds padding only.
    group, rank = both(), dist.get_rank()
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(11, 6, generator=generator).requires_grad_()
    whole = torch.randn(20, 6, generator=generator)
    targets = torch.randint(0, vocab_size, (11,), generator=generator)
    factors = torch.randn(2, 11, generator=generator)
    weight = whole[rank * 10 : (rank + 1) * 10].clone().requires_grad_()
    results = selected_logprobs(hidden, weight, targets, group, vocab_size, temperature, chunk=4)
    (torch.stack(results) * factors).sum().backward()
    assert hidden.grad is not None
    dist.all_reduce(hidden.grad)  # as hidden_for_logits does

    twin_hidden = hidden.detach().double().requires_grad_()
    twin_weight = whole.double().requires_grad_()
    logits = (twin_hidden @ twin_weight.t())[:, :vocab_size] / temperature
    log_p = logits.log_softmax(dim=-1)
    expected = torch.stack([log_p[torch.arange(11), targets], -(log_p.exp() * log_p).sum(dim=-1)])
    (expected * factors).sum().backward()
    torch.testing.assert_close(torch.stack(results).double(), expected, rtol=1e-5, atol=1e-5)
    pairs: Mapping[str, tuple[Tensor | None, Tensor | None]] = {
        "hidden": (hidden.grad, twin_hidden.grad),
        "weight": (weight.grad, twin_weight.grad),
    }
    for name, (ours, theirs) in pairs.items():
        assert ours is not None and theirs is not None
        if name == "weight":
            theirs = theirs[rank * 10 : (rank + 1) * 10]
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_shards_come_back_together(dim):
    whole = torch.randn(8, 12, 4, generator=torch.Generator().manual_seed(0))
    group = both()
    shard = shard_sequence(whole, group, dim)
    assert shard.shape[dim] == whole.shape[dim] // 2
    torch.testing.assert_close(unshard_sequence(shard, group, dim), whole, rtol=0, atol=0)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_rank_is_raised_on_both_defect_10(failing):
    group = both()
    with (
        pytest.raises(UserError, match=rf"^rank {failing} has no data$"),
        raise_on_all_ranks(group),
    ):
        if dist.get_rank() == failing:
            raise UserError(f"rank {failing} has no data")
    # Both are still in step.
    assert gather_objects(group, dist.get_rank()) == [0, 1]


def test_of_two_errors_all_ranks_raise_the_first():
    group = both()
    with pytest.raises(UserError, match=r"^ValueError: rank 0$"), raise_on_all_ranks(group):
        raise ValueError(f"rank {dist.get_rank()}")


# ---- Several encoders ----


@dataclass(frozen=True)
class Series(MediaSpec):
    """Numbers from 0 on, two a unit and a token for each; the last unit may have one."""

    modality: ClassVar[str] = "series"
    path: str
    count: int
    content: str = ""
    preprocess: str = ""
    unit_bytes: int = 24

    def key(self) -> str:
        return f"series {self.path}"

    @property
    def num_units(self) -> int:
        return -(-self.count // 2)

    def tokens_of(self, units: range) -> int:
        return min(2 * units.stop, self.count) - 2 * units.start

    def cost(self) -> float:
        return SIZE**2 * 3.0  # as three frames of the test's videos

    @property
    def counted_as(self) -> str:
        return "units/series"

    def load(self, units: range) -> UnitTensors:
        if self.path == "broken":
            raise MediaError(self.path, "no numbers")
        values = torch.arange(2.0 * units.start, 2.0 * units.stop).view(-1, 2)
        return values, torch.tensor([self.tokens_of(range(u, u + 1)) for u in units])


class SeriesEncoder(torch.nn.Module):
    """[units, 2] and the tokens of each -> [tokens, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, values: Tensor, tokens: Tensor, preprocess: str) -> Tensor:
        there = values[torch.arange(2) < tokens[:, None]]
        return torch.sin(there[:, None] * self.weight)


def test_units_of_two_modalities_are_dealt_together(shared_path):
    videos = write_videos(shared_path, 5, 4)
    series = [Series("a", 7), Series("broken", 4), Series("b", 6)]
    pictures, numbers = ToyEncoder(), SeriesEncoder()
    stage = MediaEncoder(
        {
            "toy": UnitEncoder(pictures, ("video",), HIDDEN, lambda how: 2, both()),
            "numbers": UnitEncoder(numbers, ("series",), 2, lambda how: 2, both()),
        },
        both(),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    # 9 frames, 9 units of 3 frames' cost: each rank has the cost of 18 frames.
    encoded = stage.encode([videos[0], *series, videos[1]], for_backward=True)
    assert list(encoded.failed) == ["series broken"]
    counts = gather_objects(both(), dict(encoded.counts))
    assert counts == [{"frames": 5, "units/series": 4}, {"frames": 4, "units/series": 3}]
    check_embeddings_of(encoded, videos, series, pictures)
    parts = {s.key(): torch.ones(s.count, 2) * (1 + dist.get_rank()) for s in series}
    stage.backward("numbers", encoded, parts)
    assert numbers.weight.grad is not None and pictures.weight.grad is None
    dist.all_reduce(numbers.weight.grad)
    twin = SeriesEncoder()
    for count in (7, 6):
        (3 * torch.sin(torch.arange(float(count))[:, None] * twin.weight).sum()).backward()
    torch.testing.assert_close(numbers.weight.grad, twin.weight.grad, rtol=1e-5, atol=1e-5)


def check_embeddings_of(
    encoded: EncodedMedia, videos: list[VideoSpec], series: list[Series], pictures: ToyEncoder
) -> None:
    order = [videos[0].key(), "series a", "series b", videos[1].key()]
    assert list(encoded.embeddings) == order
    with torch.no_grad():
        for spec in videos:
            expected = pictures(spec.frames()).flatten(0, 1)
            torch.testing.assert_close(
                encoded.embeddings[spec.key()], expected, rtol=1e-5, atol=1e-6
            )
        weight = torch.tensor([0.3, -0.2])
        for numbers in (series[0], series[2]):
            expected = torch.sin(torch.arange(float(numbers.count))[:, None] * weight)
            torch.testing.assert_close(encoded.embeddings[numbers.key()], expected)
