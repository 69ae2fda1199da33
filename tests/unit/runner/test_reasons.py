"""What a failed launch of a program says first."""

from __future__ import annotations

import pytest

from tests.functional.reasons import reason_of

TRACEBACK = """a line
Traceback (most recent call last):
  File "/x/megatron_longrl/training/loop.py", line 171, in run
    self._run(trainer)
  File "/x/megatron_longrl/algorithms/advantages.py", line 56, in <genexpr>
    known = totals[valid]
  File "/x/.venv/lib/python3.11/site-packages/torch/functional.py", line 3, in index
IndexError: tensors used as indices must be long
"""


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            TRACEBACK,
            "megatron_longrl/algorithms/advantages.py:56: "
            "IndexError: tensors used as indices must be long",
        ),
        (
            "".join(f"[rank1]: {line}\n" for line in TRACEBACK.splitlines()) + "torchrun ends\n",
            "megatron_longrl/algorithms/advantages.py:56: "
            "IndexError: tensors used as indices must be long",
        ),
        (f"{TRACEBACK}error: lr is not a number\nthe end\n", "error: lr is not a number"),
        ("step 1\nKilled\n\n", "Killed"),
        ("", "it has printed nothing"),
    ],
)
def test_reason(output: str, reason: str) -> None:
    assert reason_of(output) == reason
