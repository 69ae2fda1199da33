"""A tiny model, and a folder of its weights."""

from __future__ import annotations

from tests.unit.checkpoint.conftest import (
    build as build,
)
from tests.unit.checkpoint.conftest import (
    convert as convert,
)
from tests.unit.checkpoint.conftest import (
    groups as groups,
)
from tests.unit.checkpoint.conftest import (
    tiny as tiny,
)
from tests.unit.checkpoint.conftest import (
    vila_folder as vila_folder,
)
