"""The times at which a model looks at a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_longrl.media.modalities.video.probe import probe
from megatron_longrl.media.modalities.video.spec import sample_frame_indices
from megatron_longrl.media.modalities.video.times import seconds_at


@dataclass(frozen=True)
class FrameSampling:
    """The choice of frames of a video: see ``--video-frames`` and ``--video-fps``."""

    max_frames: int | None
    fps: float | None

    def seconds(self, path: Path) -> list[float]:
        """Times, from the first frame on, of frames that are spread uniformly.

        Raises:
            MediaError: the video cannot be read.
        """
        info = probe(path)
        return [seconds_at(info, i) for i in sample_frame_indices(info, self.max_frames, self.fps)]
