"""The modality of videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longrl.media.modality import Modality


def _inspect(path: Path) -> Mapping[str, Any]:
    from megatron_longrl.media.modalities.video.probe import probe

    info = probe(path)
    seconds = info.duration_seconds
    return {
        "frames": info.num_frames,
        "seconds": seconds,
        "fps": info.num_frames / seconds if seconds else None,
        "width": info.width,
        "height": info.height,
        "codec": info.codec,
    }


MODALITY = Modality("video", "videos", ("video",), _inspect, counted_as="frames")
"""Videos."""
