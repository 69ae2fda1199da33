"""The modality of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longrl.media.modality import Modality


def _inspect(path: Path) -> Mapping[str, Any]:
    """A picture is one frame and takes no time."""
    from megatron_longrl.media.modalities.image.reader import probe_image, read_image

    probe_image(path)
    height, width = read_image(path).shape[:2]
    return {"frames": 1, "seconds": 0.0, "fps": None, "width": width, "height": height}


MODALITY = Modality("image", "images", ("image",), _inspect, counted_as="frames")
"""Images."""
