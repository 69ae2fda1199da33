"""The latents of a run's pictures."""

from __future__ import annotations

from megatron_longrl.errors import ConfigError
from megatron_longrl.models.flow_section import FlowSection


def latent_shape(section: FlowSection, pixels_per_latent: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents of a picture.

    Args:
        pixels_per_latent: side of the square of pixels that the autoencoder makes a latent of.

    Raises:
        ConfigError: the picture's size does not go into whole tokens, or into too many.
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
    return section.latent_channels, height // pixels_per_latent, width // pixels_per_latent
