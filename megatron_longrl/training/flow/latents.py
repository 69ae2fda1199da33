"""The latents of a run's pictures or films."""

from __future__ import annotations

from megatron_longrl.errors import ConfigError
from megatron_longrl.models.flow.section import FlowSection


def latent_shape(
    section: FlowSection, pixels_per_latent: int, frames_per_latent: int = 1
) -> tuple[int, ...]:
    """Channels, height and width of the latents of a picture; of a film channels, frames, height
    and width.

    Args:
        pixels_per_latent: side of the square of pixels that the autoencoder makes a latent of.
        frames_per_latent: frames of a latent that is not the first one, which has one.

    Raises:
        ConfigError: the size does not go into whole tokens, or into too many.
    """
    step = pixels_per_latent * section.latent_patch_size
    for name in ("picture_height", "picture_width"):
        pixels = getattr(section, name)
        if pixels % step:
            nearest = max(1, round(pixels / step)) * step
            raise ConfigError(
                f"{name} ({pixels}) is no multiple of {step}, the pixels of a token: choose a "
                f"multiple, e.g. --{name.replace('_', '-')} {nearest}"
            )
        most = section.most_tokens_a_side
        if most is not None and pixels // step > most:
            raise ConfigError(
                f"{name} ({pixels}) has {pixels // step} tokens, and the model knows positions of "
                f"{most}: choose --{name.replace('_', '-')} of at most {most * step}"
            )
    height, width = section.picture_height, section.picture_width
    sides = height // pixels_per_latent, width // pixels_per_latent
    if section.frames is None:
        return section.latent_channels, *sides
    return (
        section.latent_channels,
        _latent_frames(section.frames, frames_per_latent),
        *sides,
    )


def _latent_frames(frames: int, each: int) -> int:
    if (frames - 1) % each:
        nearest = round((frames - 1) / each) * each + 1
        raise ConfigError(
            f"film_frames ({frames}) is not one more than a multiple of {each}, the frames of a "
            f"latent: choose e.g. --film-frames {nearest}"
        )
    return 1 + (frames - 1) // each
