"""Towers whose layers are split over two tensor-parallel ranks, which encode the same frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_longrl.data.rows import load_rows
from megatron_longrl.errors import UserError
from megatron_longrl.media.load_together import load_together
from megatron_longrl.media.loader import MediaLoader
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.training.runtime import build_runtime
from tests.distributed.cases import SP, TP2
from tests.distributed.families import check_family
from tests.distributed.layouts import check, tiny_config
from tests.distributed.test_frames import broken, write_videos
from tests.distributed.test_tiles import KINDS, PROJECTOR, check_tiles
from tests.distributed.test_tiles import data as data
from tests.runner.tiers import full_only

HERE = "tests/distributed/test_split_towers.py::"
SPLIT = TP2 | {"vision_tensor_parallel": True}


OPTIONS: dict[str, dict[str, Any]] = {
    "chunks": {},
    "sequence parallelism": SP,
    "one chunk": {"encoder_chunk_frames": 64},
    "whole videos": {"mrsp_mode": "none"},
    "recomputed": {"recompute_granularity": "full"},
}


@pytest.mark.parametrize(
    "options",
    full_only(
        f"{HERE}test_loss_and_gradients",
        [pytest.param(fields, id=name) for name, fields in OPTIONS.items()],
        ["sequence parallelism", "one chunk", "whole videos"],
    ),
)
def test_loss_and_gradients(tiny_data, options):
    check(tiny_data, **SPLIT, **options)


@pytest.mark.parametrize(
    "family",
    full_only(
        f"{HERE}test_loss_and_gradients_of_other_families",
        ["qwen2_5_vl", "qwen3_vl", "qwen2_5_omni"],
        ["qwen3_vl"],
    ),
)
def test_loss_and_gradients_of_other_families(family, family_folder):
    check_family(family_folder(family), **SPLIT)


@pytest.mark.parametrize("kind", full_only(f"{HERE}test_images_in_tiles", KINDS, ["S2"]))
def test_images_in_tiles(data, kind):
    check_tiles(tiny_config(data, **KINDS[kind], **PROJECTOR, **SPLIT))


def test_a_rank_holds_half_of_every_layer_and_decodes_half_of_the_frames(tiny_data, monkeypatch):
    whole = build_runtime(tiny_config(tiny_data, **TP2), "rl")
    counts = {"whole": parameters_of_layers(whole)}
    runtime = build_runtime(tiny_config(tiny_data, **SPLIT), "rl")
    counts["split"] = parameters_of_layers(runtime)
    # But for norms, and biases behind sums over ranks.
    assert 0.5 < counts["split"] / counts["whole"] < 0.6
    stage = runtime.train_step.media_encoder
    asked: list[int] = []
    load = stage.loader.load

    def note(requests):
        asked.append(sum(len(units) for _, units in requests))
        return load(requests)

    monkeypatch.setattr(stage.loader, "load", note)
    encoded = stage.encode(specs_of(runtime, tiny_data))
    decoded = gather_objects(runtime.groups.gloo_group, sum(asked))
    assert sum(decoded) == 47 and max(decoded) - min(decoded) <= 3
    assert gather_objects(runtime.groups.gloo_group, encoded.counts["frames"]) == [47, 0]


def parameters_of_layers(runtime) -> int:
    tower = runtime.model.encoders["encoder"].module.vision_tower
    return sum(p.numel() for p in tower.decoder.layers.parameters())


def specs_of(runtime, folder):
    prompts = runtime.build_prompts(load_rows([str(folder)]))
    return [spec for prompt in prompts for spec in prompt.media]


def test_a_broken_video_fails_alone(tiny_data, shared_path):
    runtime = build_runtime(tiny_config(tiny_data, **SPLIT), "rl")
    stage = runtime.train_step.media_encoder
    good = specs_of(runtime, tiny_data)
    bad = replace(broken(shared_path, 5), preprocess=good[0].preprocess)
    encoded = stage.encode([good[0], bad, *good[1:]])
    assert list(encoded.failed) == [bad.key()]
    expected = stage.encode(good)
    for spec in good:
        assert torch.equal(encoded.embeddings[spec.key()], expected.embeddings[spec.key()])


def test_a_decoder_that_crashes_on_one_rank_ends_both(tiny_data, monkeypatch):
    runtime = build_runtime(tiny_config(tiny_data, **SPLIT), "rl")
    specs = specs_of(runtime, tiny_data)

    def crash(requests):
        raise MemoryError("no room for frames")

    if dist.get_rank() == 1:
        monkeypatch.setattr(runtime.train_step.media_encoder.loader, "load", crash)
    with pytest.raises(UserError, match="MemoryError: no room for frames"):
        runtime.train_step.media_encoder.encode(specs)


def test_pixels_are_those_of_one_process(tiny_data, shared_path):
    runtime = build_runtime(tiny_config(tiny_data, **SPLIT), "rl")
    specs = write_videos(shared_path, 5, 1, 8)
    requests = [(spec, range(spec.num_units)) for spec in specs]
    team = runtime.groups.split_encoders.tensor_parallel
    assert team is not None
    decoded = load_together(team, requests, torch.device("cpu"), MediaLoader())
    for spec, units in zip(specs, decoded, strict=True):
        assert not isinstance(units, MediaError)
        assert torch.equal(units[0].flatten(0, 1), spec.frames())
