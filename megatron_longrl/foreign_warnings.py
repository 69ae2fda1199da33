"""Warnings of libraries about what users cannot change."""

from __future__ import annotations

import logging
import warnings

HARMLESS_WARNINGS = (
    ".*(Apex|apex).*",
    ".*torch.distributed.*is deprecated.*",
    "full scope is deprecated",  # The default of core's cuda_graph_scope, which no one has set.
    "The .grad attribute of a Tensor that is not a leaf",  # Core's distributed optimizer in fp32.
)
"""Beginnings of warnings about defaults that users cannot change."""


def ignore_harmless_warnings() -> None:
    """Hide warnings that some libraries raise at import; call this before they are imported."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # A line for each image processor that takes PIL, because torchvision is not installed.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)


def ignore_core() -> None:
    """Hide core's messages in programs that train nothing; call this before core is imported. Core
    reports its fallbacks without Transformer Engine and apex and, on a CPU, warns at each weight
    that it draws."""
    ignore_harmless_warnings()
    warnings.filterwarnings("ignore", module=r"megatron\.")
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
