"""The transformer of Wan beside diffusers', on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from megatron_longrl.algorithms.flow.seeds import noise_generator
from megatron_longrl.errors import UserError
from megatron_longrl.models.wan.config import WanSection
from megatron_longrl.models.wan.frozen import WanParts
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.rl.flow.sampling import FlowSampler, Wanted
from megatron_longrl.rl.flow.settings import FlowSettings
from megatron_longrl.training.flow.latents import latent_shape
from megatron_longrl.training.flow.prompt_embeddings import PromptEmbeddings
from megatron_longrl.training.flow.velocity_step import VelocityStep
from megatron_longrl.training.model import build_model
from tests import tiny_wan
from tests.parity.flow_models import check_round_trip, check_velocities_and_gradients
from tests.tiny_wan import FILM, FRAME


@pytest.fixture(scope="module")
def groups() -> ParallelGroups:
    platform.prepare()
    config = tiny_wan.config()
    return init_parallel(config.parallel, config.model)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2.1": ({}, {}),
    "2.2 5B": ({"latent_channels": 48}, {"in_channels": 48, "out_channels": 48}),
    "without norms": ({"cross_attn_norm": False}, {"cross_attn_norm": False}),
    "other epsilon": ({"norm_epsilon": 0.01}, {"eps": 0.01}),
    "recomputed": ({"recompute_granularity": "full"}, {}),
}


@pytest.mark.parametrize("size", [FRAME, FILM], ids=["frame", "film"])
@pytest.mark.parametrize("ours, theirs", KINDS.values(), ids=KINDS)
def test_velocities_and_gradients(
    ours: dict[str, Any], theirs: dict[str, Any], size: tuple[int, int, int], groups: ParallelGroups
) -> None:
    config, reference = tiny_wan.config(**ours), tiny_wan.diffusers_model(**theirs)
    model = tiny_wan.our_model(reference, config, groups)
    given = tiny_wan.inputs(size, channels=theirs.get("in_channels", 16))
    velocities = model(**given), tiny_wan.their_velocity(reference, given)
    check_velocities_and_gradients(model, reference, velocities, config, groups)


def test_a_time_for_each_token_is_that_of_all(groups: ParallelGroups) -> None:
    """As the pipeline of Wan 2.2 TI2V-5B gives it where no picture is a condition."""
    config, reference = tiny_wan.config(), tiny_wan.diffusers_model()
    model, given = tiny_wan.our_model(reference, config, groups), tiny_wan.inputs(FILM)
    every = given["times"][:, None].expand(-1, 30)
    with torch.no_grad():
        expected = tiny_wan.their_velocity(reference, {**given, "times": every})
        assert (model(**given) - expected).abs().max() < 1e-4


def test_what_bf16_keeps_in_float32(groups: ParallelGroups) -> None:
    from diffusers import WanTransformer3DModel

    kept = WanTransformer3DModel._keep_in_fp32_modules
    model = build_model(tiny_wan.config(bf16=True), groups, train=False).policy.module
    raised = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    expected = {name for name, _ in model.named_parameters() if set(kept) & set(name.split("."))}
    assert raised == expected and len(raised) > 2
    velocity = model(**tiny_wan.inputs(FILM))
    assert velocity.dtype == torch.bfloat16


def test_a_round_trip_is_exact(groups: ParallelGroups) -> None:
    config, reference = tiny_wan.config(), tiny_wan.diffusers_model()
    model = tiny_wan.our_model(reference, config, groups)
    check_round_trip(model, reference, config, groups)


def test_initial_velocities_are_0(groups: ParallelGroups) -> None:
    model = build_model(tiny_wan.config(), groups, train=False).policy.module
    assert not model(**tiny_wan.inputs(FRAME)).any()
    weights = dict(model.named_parameters())
    assert weights["blocks.1.attn1.linear_qkv.weight"].std() > 0.05
    assert weights["blocks.1.scale_shift_table"].std() > 0.05


FILMS: dict[str, Any] = {
    "text_max_tokens": 12,
    "rl_algorithm": "flow_grpo",
    "picture_height": 32,
    "picture_width": 48,
}


def sampled(
    reference: torch.nn.Module,
    folder: Path,
    groups: ParallelGroups,
    prompts: list[str],
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Films by deterministic steps, and the noise that they began with."""
    config = tiny_wan.config(**{**FILMS, **more})
    section = WanSection.of(config.family)
    model = tiny_wan.our_model(reference, config, groups)
    frozen = WanParts(folder, section.text_max_tokens)
    embeddings = PromptEmbeddings(frozen.encode_texts)
    step = VelocityStep(model, section.guidance_scale, embeddings.of([""])[0])
    settings = FlowSettings.of(section, config.algorithm)
    shape = latent_shape(section, frozen.pixels_per_latent, frozen.frames_per_latent)
    sampler = FlowSampler(step, settings, shape, 5, torch.device("cpu"))
    wanted = [Wanted(0, index, text) for index, text in enumerate(embeddings.of(prompts))]
    latents = sampler.sample(wanted, 7, settings.sigmas(4), range(0)).latents
    noise = [
        torch.randn(shape, generator=noise_generator("first", 5, 7, 0, index))
        for index in range(len(prompts))
    ]
    return frozen.decode(latents).int(), torch.stack(noise)


@pytest.mark.parametrize(("frames", "guidance"), [(1, 1.0), (9, 3.0)], ids=["frame", "film"])
def test_films_are_those_of_diffusers_pipeline(
    frames: int, guidance: float, groups: ParallelGroups, tmp_path: Path
) -> None:
    """To 1/255, from the same noise, by the steps of FlowMatchEulerDiscreteScheduler."""
    reference = tiny_wan.diffusers_model()
    tiny_wan.write_folder(tmp_path, reference)
    prompts = ["a red square goes left", "a square"]
    ours, noise = sampled(
        reference, tmp_path, groups, prompts, film_frames=frames, guidance_scale=guidance
    )
    theirs = WanPipeline.from_pretrained(tmp_path, transformer=reference)(
        prompts,
        height=32,
        width=48,
        num_frames=frames,
        num_inference_steps=4,
        guidance_scale=guidance,
        max_sequence_length=12,
        output_type="np",
        latents=noise,
    ).frames
    expected = (torch.from_numpy(theirs) * 255).round().int()
    assert ours.shape == (2, frames, 32, 48, 3)
    assert (ours - expected).abs().max() <= 1
    assert ours.float().std() > 1, "not one colour"


def test_latents_are_those_of_the_autoencoder(tmp_path: Path) -> None:
    tiny_wan.write_folder(tmp_path)
    frozen = WanParts(tmp_path, 12)
    film = torch.randint(256, (1, 5, 32, 32, 3), dtype=torch.uint8)
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "vae")
    with torch.no_grad():
        means = vae.encode(film.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mean
    mean, deviation = torch.tensor([vae.config.latents_mean, vae.config.latents_std])[
        :, None, :, None, None, None
    ]
    expected = (means - mean) / deviation
    assert (frozen.encode_pictures(film) - expected).abs().max() < 1e-5
    assert frozen.encode_pictures(film).shape == (1, 16, 2, 4, 4)


def test_the_autoencoder_of_wan_2_2(groups: ParallelGroups, tmp_path: Path) -> None:
    """Sixteen pixels a latent, forty-eight channels."""
    reference = tiny_wan.diffusers_model(in_channels=48, out_channels=48)
    tiny_wan.write_folder(
        *(tmp_path, reference),
        base_dim=4,
        decoder_base_dim=4,
        z_dim=48,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        latents_mean=[0.1] * 48,
        latents_std=[1.1] * 48,
    )
    fields = {"latent_channels": 48, "film_frames": 5, "picture_width": 32}
    films, _ = sampled(reference, tmp_path, groups, ["a square"], **fields)
    assert films.shape == (1, 5, 32, 32, 3) and films.float().std() > 1


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ("{", "model_index.json cannot be read: "),
        ('{"_class_name": "StableDiffusion3Pipeline"}', "is of StableDiffusion3Pipeline, not of "),
        ('{"_class_name": "WanImageToVideoPipeline"}', "given pictures or films as conditions"),
        ('{"_class_name": "WanPipeline", "boundary_ratio": 0.9}', "has two transformers "),
        ('{"_class_name": "WanPipeline"}', "has no text_encoder, tokenizer, vae"),
    ],
)
def test_other_folders_are_refused(index: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(UserError, match="^--diffusers-folder: .*" + line):
        WanParts(tmp_path, 12)
