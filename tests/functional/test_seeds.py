"""The quickstart on further seeds of data, weights, order and sampling, beside the default one of
test_quickstart.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.functional.test_quickstart import check_what_rl_brings, make_quickstart


@pytest.mark.full("tests/functional/test_curves.py::test_golden_curves")
@pytest.mark.parametrize("seed", [4, 6])
def test_what_rl_brings(seed: int, tmp_path: Path) -> None:
    check_what_rl_brings(make_quickstart(tmp_path, seed))
