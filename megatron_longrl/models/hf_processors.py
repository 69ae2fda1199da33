"""Settings of the processors of images and videos, wherever a checkpoint keeps them.

transformers 5 saves them in ``processor_config.json``, an object for each processor; older versions
in a file for each. The order in which they are looked for is that of ``AutoImageProcessor`` and
``AutoVideoProcessor`` of transformers 5: the new place comes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from megatron_longrl.models.hf_settings import Settings

COMMON_FILE = "processor_config.json"
"""File of transformers 5; older files of this name hold no processor of images or videos."""

FILES: dict[str, tuple[str, ...]] = {
    "image_processor": ("preprocessor_config.json",),
    # Older checkpoints have one file for both.
    "video_processor": ("video_preprocessor_config.json", "preprocessor_config.json"),
}
"""Files of one processor, best first."""

Channels = tuple[float, float, float]

_ONLY = {"do_resize": True, "do_rescale": True, "do_normalize": True}
"""Settings of which one value is implemented; it is also the default where none is written."""


def processor_settings(
    folder: Path, kind: Literal["image_processor", "video_processor"]
) -> Settings | None:
    """Return a folder's settings of one processor; None where it has none.

    Raises:
        UserError: a file cannot be read, or it switches off a step that is always done here.
    """
    common = folder / COMMON_FILE
    settings = None
    if common.exists():
        within = Settings.of(common)
        settings = within.section(kind) if kind in within else None
    if settings is None:
        found = next((folder / name for name in FILES[kind] if (folder / name).exists()), None)
        settings = Settings.of(found) if found else None
    if settings is not None:
        settings.only(_ONLY)
    return settings


def normalisation(settings: Settings) -> dict[str, Channels]:
    """The fields ``image_mean`` and ``image_std``, as far as a processor has them.

    Raises:
        UserError: they are no numbers of three channels.
    """
    found = {
        "image_mean": settings.channels("image_mean"),
        "image_std": settings.channels("image_std", positive=True),
    }
    return {name: value for name, value in found.items() if value is not None}
