"""Pictures and films on their way to rewards, and rewards that look at their pixels."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from megatron_longrl.rewards.result import RewardError

if TYPE_CHECKING:
    import numpy as np

    from megatron_longrl.experience.reward_input import RewardInput

_QUALITY = 95


def packed(pixels: np.ndarray) -> str:
    """A uint8 picture [height, width, 3] as text: the base64 of a PNG file, which loses nothing. A
    film [frames, height, width, 3] has a line for each frame."""
    from PIL import Image

    lines = []
    for frame in pixels.reshape(-1, *pixels.shape[-3:]):
        target = io.BytesIO()
        Image.fromarray(frame).save(target, "PNG", compress_level=1)
        lines.append(base64.b64encode(target.getvalue()).decode("ascii"))
    return "\n".join(lines)


def pixels_of(sample: RewardInput) -> np.ndarray:
    """The picture of a sample, uint8 [height, width, 3].

    Raises:
        RewardError: the sample is a text or a film.
    """
    if sample.is_film:
        raise RewardError("looks at a picture, and there is a film: take its frames")
    return frames_of(sample)[0]


def frames_of(sample: RewardInput) -> np.ndarray:
    """The frames of a sample, uint8 [frames, height, width, 3]; a picture is one frame.

    Raises:
        RewardError: the sample is a text.
    """
    import numpy as np
    from PIL import Image

    if sample.picture is None:
        raise RewardError("needs a picture, but the policy writes text")
    frames = []
    for line in sample.picture.splitlines():
        with Image.open(io.BytesIO(base64.b64decode(line))) as picture:
            frames.append(np.asarray(picture.convert("RGB")))
    return np.stack(frames)


def jpeg_compressibility(sample: RewardInput) -> float:
    """The size of the picture as a JPEG file of quality 95, in negative units of 100,000 bytes; the
    mean over the frames of a film.

    https://arxiv.org/abs/2305.13301, section 5.1, in other units.
    """
    from PIL import Image

    frames, size = frames_of(sample), 0
    for frame in frames:
        target = io.BytesIO()
        Image.fromarray(frame).save(target, "JPEG", quality=_QUALITY)
        size += len(target.getvalue())
    return -size / len(frames) / 1e5
