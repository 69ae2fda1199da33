"""The modality of sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longrl.media.modality import Modality


def _inspect(path: Path) -> Mapping[str, Any]:
    from megatron_longrl.media.modalities.audio.track import probe_track

    return {"seconds": float(probe_track(path).seconds)}


MODALITY = Modality("audio", "audios", ("audio",), _inspect)
"""Sound."""
