"""A tiny Stable Diffusion 3 around its transformer, made from nothing: an autoencoder that is
trained on rendered squares, and text encoders whose random weights give every caption another
embedding.

The folder is as diffusers saves pipelines, so that the rest of the package reads it as any other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_longrl.arena.command_line import OneLineParser, number, run_command
from megatron_longrl.arena.shapes import SIDE, combinations, draw_shapes

LATENT_CHANNELS = 4
TEXT_WIDTH = 32
"""Channels of a text encoder; those of the first two stand side by side."""
TEXT_TOKENS = 7

_SMALLER = 0.25
"""Factor of random weights, by which embeddings of captions differ by about 1."""
_SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")


STEPS = 900
"""Steps of the autoencoder's training."""
_RATE, _BATCH = 3e-3, 16
_MORE, _CONTRAST = 10.0, 0.3


def write_folder(folder: Path, seed: int, steps: int = STEPS) -> float:
    """Write the folder; returns the mean squared error of the autoencoder, in units of the range of
    a pixel, on pictures that it has not seen.

    Args:
        steps: the number of steps for which the autoencoder is trained.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(seed)
    vae, error = _autoencoder(seed, steps)
    clip, t5 = _text_encoders()
    # Only its sizes count: the trainer has the transformer's weights.
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=2,
        patch_size=3,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clip[0],
        text_encoder_2=clip[1],
        text_encoder_3=t5,
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        tokenizer_3=_tokenizer(),
    ).save_pretrained(folder)
    return error


def _pictures(generator: np.random.Generator, count: int) -> Tensor:
    """[count, 3, side, side] from -1 to 1."""
    pixels = np.stack([draw_shapes(generator).picture() for _ in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _weights(pictures: Tensor) -> Tensor:
    """[count, 1, side, side]: more for pixels of squares, which are few."""
    ground = pictures.flatten(2).median(2).values[..., None, None]
    squares = (pictures - ground).abs().amax(1, keepdim=True) > _CONTRAST
    return 1 + _MORE * squares


def _autoencoder(seed: int, steps: int) -> tuple[Any, float]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        layers_per_block=1,
        # One group, because a norm of few channels takes from a picture how bright its few squares
        # are, and with it their colour.
        norm_num_groups=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), _RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps, pct_start=0.1)
    for _ in range(steps):
        pictures = _pictures(generator, _BATCH)
        latents = vae.encode(pictures).latent_dist
        # Noise makes the decoder bear the errors of sampled latents.
        code = latents.mean + 0.1 * torch.randn_like(latents.mean)
        error = (vae.decode(code).sample - pictures).square() * _weights(pictures)
        loss = error.mean() + 1e-3 * latents.mean.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        pictures = _pictures(generator, 256)
        means = vae.encode(pictures).latent_dist.mean
        error = float(F.mse_loss(vae.decode(means).sample, pictures)) / 4
    shift, scale = float(means.mean()), 1 / float(means.std())
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return vae, error


def _words() -> list[str]:
    return sorted({word for one in combinations() for word in one.caption.split()})


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_TOKENS,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def _text_encoders() -> tuple[tuple[Any, Any], Any]:
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    size = len(_SPECIAL) + len(_words())
    clip = CLIPTextConfig(
        vocab_size=size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        initializer_factor=8.0,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    t5 = T5Config(
        vocab_size=size,
        d_model=2 * TEXT_WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=3,
    )
    pair = CLIPTextModelWithProjection(clip), CLIPTextModelWithProjection(clip)
    with torch.no_grad():
        for parameter in (p for model in pair for p in model.parameters() if p.dim() > 1):
            parameter.mul_(_SMALLER)
    return pair, T5EncoderModel(t5)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python -m megatron_longrl.arena.shapes_folder",
        description="Train an autoencoder on rendered squares, and write it as a diffusers folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write")
    add("--steps", type=number(int, 1, 10**6), default=STEPS, help="of the autoencoder's training")
    add("--seed", type=number(int, 0, 2**63), default=1234, help="what everything is drawn from")
    return parser


def _write(args: argparse.Namespace) -> str:
    error = write_folder(args.output, args.seed, args.steps)
    return f"pictures come back with an error of {100 * error**0.5:.1f} % of white"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), _write, argv)


if __name__ == "__main__":
    sys.exit(main())
