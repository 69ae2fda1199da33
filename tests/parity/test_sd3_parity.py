"""The transformer of Stable Diffusion 3 beside diffusers', on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.arena.shapes_folder import write_folder
from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.sd3.embeddings import position_table
from megatron_longrl.models.sd3.frozen import SD3Parts
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.rl.flow.sampling import FlowSampler, Wanted
from megatron_longrl.rl.flow.settings import FlowSettings
from megatron_longrl.training.flow.prompt_embeddings import PromptEmbeddings
from megatron_longrl.training.flow.velocity_step import VelocityStep
from megatron_longrl.training.model import build_model
from tests import tiny_sd3
from tests.parity.flow_models import check_round_trip, check_velocities_and_gradients
from tests.tiny_sd3 import ODD, SQUARE


@pytest.fixture(scope="module")
def groups() -> ParallelGroups:
    platform.prepare()
    config = tiny_sd3.config()
    return init_parallel(config.parallel, config.model)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd3.5 medium": ({}, {}),
    "sd3.5 large": ({"dual_attention_layers": []}, {"dual_attention_layers": ()}),
    "sd3": (
        {"dual_attention_layers": [], "qk_layernorm": False},
        {"dual_attention_layers": (), "qk_norm": None},
    ),
    "recomputed": ({"recompute_granularity": "full"}, {}),
}


@pytest.mark.parametrize("size", [SQUARE, ODD], ids=["square", "odd"])
@pytest.mark.parametrize("ours, theirs", KINDS.values(), ids=KINDS)
def test_velocities_and_gradients(
    ours: dict[str, Any], theirs: dict[str, Any], size: tuple[int, int], groups: ParallelGroups
) -> None:
    config, reference = tiny_sd3.config(**ours), tiny_sd3.diffusers_model(**theirs)
    model = tiny_sd3.our_model(reference, config, groups)
    given = tiny_sd3.inputs(size)
    velocities = model(**given), tiny_sd3.their_velocity(reference, given)
    check_velocities_and_gradients(
        model, reference, velocities, config, groups, frozenset({"pos_embed.pos_embed"})
    )


def test_a_round_trip_is_exact(groups: ParallelGroups) -> None:
    config, reference = tiny_sd3.config(), tiny_sd3.diffusers_model()
    model = tiny_sd3.our_model(reference, config, groups)
    check_round_trip(model, reference, config, groups)


def test_table_of_positions_is_diffusers_own() -> None:
    for settings in ({}, {"sample_size": 8}):
        model = SD3Transformer2DModel(
            **{"sample_size": 16, "num_layers": 1, "attention_head_dim": 16} | settings,
            num_attention_heads=2,
            caption_projection_dim=32,
            pos_embed_max_size=12,
        )
        base = settings.get("sample_size", 16) // 2
        assert torch.equal(model.pos_embed.pos_embed, position_table(12, 32, base))


def test_initial_velocities_are_0(groups: ParallelGroups) -> None:
    model = build_model(tiny_sd3.config(), groups, train=False).policy.module
    given = tiny_sd3.inputs(SQUARE)
    assert not model(**given).any()
    blocks = dict(model.named_parameters())
    assert blocks["transformer_blocks.1.attn.linear_qkv.weight"].std() > 0.05


PICTURES: dict[str, Any] = {
    "hidden_size": 64,
    "latent_channels": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "latent_sample_size": 4,
    "pos_embed_max_size": 4,
    "text_max_tokens": 12,
    "schedule_shift": 3.0,
    "rl_algorithm": "flow_grpo",
}
THEIRS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "sample_size": 4,
    "pos_embed_max_size": 4,
}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("size", [(16, 16), (8, 16)], ids=["square", "wide"])
def test_pictures_are_those_of_diffusers_pipeline(
    size: tuple[int, int], guidance: float, groups: ParallelGroups, tmp_path: Path
) -> None:
    """To 1/255, from the same noise, by deterministic steps."""
    write_folder(tmp_path, 0, steps=1)
    config = tiny_sd3.config(**PICTURES, guidance_scale=guidance)
    reference = tiny_sd3.diffusers_model(**THEIRS)
    model = tiny_sd3.our_model(reference, config, groups)
    frozen = SD3Parts(tmp_path, 12)
    prompts = ["a red square in the top left corner", "a blue square in the bottom right corner"]
    embeddings = PromptEmbeddings(frozen.encode_texts)
    step = VelocityStep(model, guidance, embeddings.of([""])[0])
    settings = FlowSettings.of(SD3Section.of(config.family), config.algorithm)
    side = frozen.pixels_per_latent
    shape = (4, size[0] // side, size[1] // side)
    sampler = FlowSampler(step, settings, shape, 5, torch.device("cpu"))
    wanted = [Wanted(0, index, text) for index, text in enumerate(embeddings.of(prompts))]
    samples = sampler.sample(wanted, 7, settings.sigmas(6), range(0))
    ours = frozen.decode(samples.latents).int()
    noise = [
        torch.randn(shape, generator=noise_generator("first", 5, 7, 0, index)) for index in (0, 1)
    ]
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, transformer=reference)
    theirs = pipeline(
        prompts,
        height=size[0],
        width=size[1],
        num_inference_steps=6,
        guidance_scale=guidance,
        max_sequence_length=12,
        output_type="np",
        latents=torch.stack(noise),
    ).images
    expected = (torch.from_numpy(theirs) * 255).round().int()
    assert (ours - expected).abs().max() <= 1
    assert ours.float().std() > 1, "not one colour"
