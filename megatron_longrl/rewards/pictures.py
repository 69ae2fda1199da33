"""Pictures on their way to rewards, and rewards that look at their pixels."""

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
    """A uint8 picture [height, width, 3] as text: the base64 of a PNG file, which loses nothing."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", compress_level=1)
    return base64.b64encode(target.getvalue()).decode("ascii")


def pixels_of(sample: RewardInput) -> np.ndarray:
    """The picture of a sample, uint8 [height, width, 3].

    Raises:
        RewardError: the sample is a text.
    """
    import numpy as np
    from PIL import Image

    if sample.picture is None:
        raise RewardError("looks at a picture, and there is none: the policy writes text")
    with Image.open(io.BytesIO(base64.b64decode(sample.picture))) as picture:
        return np.asarray(picture.convert("RGB")).copy()


def jpeg_compressibility(sample: RewardInput) -> float:
    """The size of the picture as a JPEG file of quality 95, in negative units of 100,000 bytes.

    https://arxiv.org/abs/2305.13301, section 5.1, in other units.
    """
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(pixels_of(sample)).save(target, "JPEG", quality=_QUALITY)
    return -len(target.getvalue()) / 1e5
