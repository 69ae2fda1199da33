"""Small real video files."""

from __future__ import annotations

from tests.unit.data.conftest import (
    picture as picture,
)
from tests.unit.data.conftest import (
    write_video as write_video,
)
