"""Learning curves: the same on one rank and two, and the same as they were.

``LONGRL_UPDATE_GOLDEN=1 bash tests/run.sh tests/functional/test_curves.py`` writes the golden
curves anew, after a change that is meant to change them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.functional.launches import Arena, curve, metrics_of, rl_flags

GOLDEN = Path(__file__).with_name("golden")
GOLDEN_TOLERANCE = 1e-2


def test_one_rank_learns_as_two_ranks_of_mrsp(
    arena: Arena, sft_run: Path, rl_run: Path, tmp_path: Path
) -> None:
    flags = (*rl_flags(arena, sft_run), "--save", str(tmp_path / "run"))
    arena.launch("train_rl", *flags, ranks=1).succeeded()
    one, two = metrics_of(tmp_path / "run"), metrics_of(rl_run)
    assert len(one) == len(two) == 5
    # Otherwise there would be nothing to compare.
    assert min(curve(two, "learning-rate")) > 0
    assert min(curve(two, "grad-norm")) > 0
    assert all(0 < reward < 1 for reward in curve(two, "reward/mean"))
    for name in ("reward/mean", "response_length/mean", "learning-rate"):
        assert curve(one, name) == curve(two, name), name
    for name in ("lm loss", "grad-norm", "entropy/mean"):
        assert curve(one, name) == pytest.approx(curve(two, name), rel=1e-4, abs=1e-7), name
    for step in (*one, *two):
        assert step["rollout_corr/logprob_diff_mean"] <= 1e-4


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("sft", ("lm loss", "grad-norm", "learning-rate")),
        ("rl", ("lm loss", "grad-norm", "entropy/mean", "reward/mean", "response_length/mean")),
    ],
)
def test_golden_curves(request: pytest.FixtureRequest, name: str, metrics: tuple[str, ...]) -> None:
    steps = metrics_of(request.getfixturevalue(f"{name}_run"))
    steps = steps[:: max(1, len(steps) // 6)]
    ours = {metric: curve(steps, metric) for metric in ("iteration", *metrics)}
    path = GOLDEN / f"{name}.json"
    if os.environ.get("LONGRL_UPDATE_GOLDEN"):
        path.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert list(ours) == list(golden)
    for metric, values in golden.items():
        expected = pytest.approx(values, rel=GOLDEN_TOLERANCE, abs=1e-4)
        assert ours[metric] == expected, metric
