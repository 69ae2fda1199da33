"""Sound beside frames on two ranks: each unit once, none twice, parts that are frozen or have
adapters, and tracks that cannot be heard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_longrl.conversion.hf import HfFolder, load_hf_weights
from megatron_longrl.data.rows import load_rows
from megatron_longrl.media.modalities.audio.spec import AudioSpec
from megatron_longrl.training.runtime import Runtime, build_runtime
from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.families import all_rollouts, run_config, twin_of
from tests.distributed.layouts import TOLERANCE, largest_error, train_step
from tests.runner.tiers import full_only

HERE = "tests/distributed/test_sound.py::"
LAYOUTS: dict[str, dict[str, Any]] = {"TP2": TP2 | SP, "MR-SP2": CP2, "PP2": PP2}
FROZEN = {f"freeze_{part}": True for part in ("vision_tower", "projector", "audio_tower")}


def built(folder: Path, **changes: Any) -> Runtime:
    runtime = build_runtime(run_config(folder, **changes), "rl")
    load_hf_weights(folder / "hf", runtime.model.modules, runtime.config, runtime.groups)
    for optimizer in runtime.model.optimizers.values():
        optimizer.reload_model_params()
    return runtime


def over_ranks(count: int) -> int:
    total = torch.tensor(count)
    dist.all_reduce(total)
    return int(total)


@pytest.mark.parametrize(
    "layout", full_only(f"{HERE}test_each_unit_is_encoded_once", LAYOUTS, ["MR-SP2"])
)
def test_each_unit_is_encoded_once(family_folder, layout):
    """Over all ranks, whichever prompts have it; and not at all while the encoder stays as it
    is."""
    folder = family_folder("qwen2_5_omni")
    runtime = built(folder, **LAYOUTS[layout], **FROZEN)
    prompts = runtime.build_prompts(load_rows([str(folder)]))
    sounds = {
        spec.key(): spec
        for prompt in prompts
        for spec in prompt.media
        if isinstance(spec, AudioSpec)
    }
    units = sum(spec.num_units for spec in sounds.values())
    assert (len(sounds), units) == (6, 9), "films of 2.25, 1 and 1.75 s, files of 0.3, 5.31, 2 s"
    pixels = sum(
        spec.num_units * spec.count_per_unit
        for prompt in prompts
        for spec in prompt.media
        if spec.counted_as == "frames"
    )
    twice = [*prompts, *prompts]
    _, media = runtime.encode(twice, for_training=True)
    shares = over_ranks(media.counts["units/audio"]), over_ranks(media.counts["frames"])
    assert shares == (units, pixels)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, media.counts["units/audio"] + media.counts["frames"])
    assert min(everyone) > 0, "both ranks have some"
    _, again = runtime.encode(twice, for_training=True)
    assert not over_ranks(sum(again.counts.values())) and again.from_memory == len(media.embeddings)


@pytest.mark.parametrize(
    ("layout", "frozen"),
    full_only(
        f"{HERE}test_frozen_towers",
        [
            pytest.param(layout, frozen, id=f"{layout}-{frozen}")
            for layout in LAYOUTS
            for frozen in ("all", "audio_tower", "vision_tower")
        ],
        ["MR-SP2-all", "TP2-vision_tower"],
    ),
)
def test_frozen_towers(family_folder, layout, frozen):
    """Loss and gradients of what is trained are those of transformers' model."""
    folder = family_folder("qwen2_5_omni")
    switches = FROZEN if frozen == "all" else {f"freeze_{frozen}": True}
    runtime = built(folder, **LAYOUTS[layout], **switches)
    _, metrics, gradients = train_step(runtime)
    loss, expected = twin_of(folder, all_rollouts(runtime), runtime.config)
    assert metrics["lm loss"] == pytest.approx(loss, rel=TOLERANCE, abs=1e-6)
    still = {"vision_tower", "mm_projector", "audio_tower"} if frozen == "all" else {frozen}
    parts = {name.partition("/")[0] for name in expected}
    assert still < parts
    trained = {name: g for name, g in expected.items() if name.partition("/")[0] not in still}
    assert largest_error(gradients, trained) <= TOLERANCE
    for name in expected.keys() - trained.keys():
        assert not gradients.get(name, torch.zeros(1)).any(), name


def test_biases_of_keys_stay_away(family_folder):
    """After updates by Adam the export still says what the model computes."""
    folder = family_folder("qwen2_5_omni")
    runtime = built(folder, **CP2, lr=0.1)
    train_step(runtime)
    module = runtime.model.encoders["audio_encoder"].module
    moved = 0.0
    for layer in module.decoder.layers:
        bias = layer.self_attention.linear_qkv.bias.detach().unflatten(0, (4, 3, -1))
        assert not bias[:, 1].any()
        moved = max(moved, float(bias.abs().max()))
    assert moved > 0.05


def test_a_track_that_breaks_off_costs_its_own_row(family_folder, shared_path):
    """Its frames can be read, and its packets; what they hold cannot be decoded."""
    folder = family_folder("qwen2_5_omni")
    broken = shared_path / "broken.flac"
    if dist.get_rank() == 0:
        content = bytearray((folder / "3-0.flac").read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        broken.write_bytes(bytes(content))
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        for row in rows:
            for kind in ("videos", "images", "audios"):
                row[kind] = [str(folder / name) for name in row.get(kind, ())]
        rows[3]["audios"][0] = str(broken)
        lines = [json.dumps(row) for row in rows]
        (shared_path / "rows.jsonl").write_text("\n".join(lines))
    dist.barrier()
    runtime = built(folder, **CP2)
    prompts = runtime.build_prompts(load_rows([str(shared_path / "rows.jsonl")]))
    prompts, media = runtime.encode(prompts, for_training=True)
    assert [prompt.row.problem_id for prompt in prompts] == ["0", "1", "2"]
    assert all(str(broken) in reason for reason in media.failed.values())


def test_adapters_of_the_audio_tower(family_folder):
    """They alone are trained, and start as nothing: the loss is the model's own."""
    folder = family_folder("qwen2_5_omni")
    options = {"lora_rank": 2, "lora_parts": ("audio_tower",), "freeze_language_model": True}
    still = {name: True for name in FROZEN if name != "freeze_audio_tower"}
    runtime = built(folder, **CP2, **options, **still, lr=0.05)
    _, metrics, _ = train_step(runtime)
    loss, _ = twin_of(folder, all_rollouts(runtime), runtime.config)
    assert metrics["lm loss"] == pytest.approx(loss, rel=TOLERANCE, abs=1e-6)
    module = runtime.model.encoders["audio_encoder"].module
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith((".lora.A", ".lora.B")) for name in trained)
    moved = [p for name, p in module.named_parameters() if name.endswith(".lora.B") and p.any()]
    assert len(moved) == 8, "four layers in each of two"
    source = HfFolder(folder / "hf")
    kept = source.read("audio_tower/audio_tower.conv1.weight")
    assert torch.equal(module.convolution1.weight, kept)
