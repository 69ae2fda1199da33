"""Small real video files for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np

# This file is imported for tests of text, too: what draws and encodes is imported by the fixtures.


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int, int], np.ndarray]:
    """Draws frame ``index`` of the videos that ``write_video`` writes."""
    from tests.unit.data.video_files import draw_picture

    return draw_picture


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Writes a video and returns its path."""
    from tests.unit.data.video_files import write

    return write
