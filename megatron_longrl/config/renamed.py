"""Fields, values and metrics that had another name in earlier versions.

Flags and recipes that use an old name are refused with the new one; the recipe of a saved run is
translated, so that the run can continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEW_NAMES: Mapping[str, str] = {
    "mrsp_stages": "mrsp_mode",
    "mrsp_machine": "mrsp_hardware_profile",
    "rollout_correction_cap": "rollout_is_threshold",
    "rollout_correction_floor": "rollout_is_threshold_lower",
    "weight_bucket_mb": "weight_bucket_mib",
}
"""The present flat name by the old one."""

NEW_METRICS: Mapping[str, str] = {
    "gap/mean": "rollout_corr/logprob_diff_mean",
    "gap/p99": "rollout_corr/logprob_diff_p99",
    "gap/max": "rollout_corr/logprob_diff_max",
    "ess/token": "rollout_corr/ess_token",
    "ess/sequence": "rollout_corr/ess_sequence",
    "correction/mean": "rollout_corr/rollout_is_mean",
    "correction/sample_share": "rollout_corr/rollout_is_eff_sample_size",
    "cut_off/mean": "response_length/clip_ratio",
    "time/contract": "time/input_parity",
}
"""The present key of a metric by the old one."""

NEW_VALUES: Mapping[str, Mapping[str, str]] = {
    "loss_aggregation": {
        "token": "token-mean",
        "sequence": "seq-mean-token-mean",
        "sequence-sum-norm": "seq-mean-token-sum-norm",
    },
    "mrsp_mode": {"0": "none", "1": "encode", "2": "full"},
    "keep_best_checkpoint_by": {
        f"{sign}{old}": f"{sign}{new}" for old, new in NEW_METRICS.items() for sign in ("", "-")
    },
}
"""The present value by the old one, as text, by the field's present flat name."""


def new_name(old: str) -> str | None:
    """Return the present name of a field by its old name; None where the name is not an old one."""
    return NEW_NAMES.get(old)


def renamed_line(old: str, new: str, kind: str) -> str:
    """The error of an old name.

    Args:
        old, new: both names, in the spelling of this place.
        kind: ``key`` or ``flag``.
    """
    values = NEW_VALUES.get(NEW_NAMES[old.lstrip("-").replace("-", "_")], {})
    pairs = ", ".join(f"{before} is {now}" for before, now in values.items())
    return f"{kind} '{old}' is called '{new}' now" + (
        f", and of its values {pairs}" if pairs else ""
    )


def present(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a saved configuration under their present names, with present values."""
    values = {NEW_NAMES.get(name, name): value for name, value in saved.items()}
    for name, changed in NEW_VALUES.items():
        if name in values:
            values[name] = changed.get(str(values[name]), values[name])
    return values
