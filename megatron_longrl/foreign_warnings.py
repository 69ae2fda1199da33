"""Warnings of libraries about what users cannot change."""

from __future__ import annotations

import warnings

HARMLESS_WARNINGS = (
    ".*(Apex|apex).*",
    ".*torch.distributed.*is deprecated.*",
    "full scope is deprecated",  # The default of core's cuda_graph_scope, which no one has set.
    "The .grad attribute of a Tensor that is not a leaf",  # Core's distributed optimizer in fp32.
)
"""Beginnings of warnings about defaults that users cannot change."""


def ignore_harmless_warnings() -> None:
    """To be called before the libraries are imported: some warn as they are."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
