"""The five areas that faults are drawn from, and their files."""

from __future__ import annotations

from pathlib import Path

AREAS: dict[str, tuple[str, ...]] = {
    "algorithms": ("megatron_longrl/algorithms/**/*.py",),
    "parallel": ("megatron_longrl/parallel/**/*.py",),
    "training": (
        "megatron_longrl/observability/**/*.py",
        "megatron_longrl/rl/**/*.py",
        "megatron_longrl/training/**/*.py",
    ),
    "mapping": (
        "megatron_longrl/conversion/mapping.py",
        "megatron_longrl/models/param_mapping.py",
        "megatron_longrl/models/*/mapping.py",
        "megatron_longrl/models/norms.py",
    ),
    "data": (
        "megatron_longrl/data/prompts.py",
        "megatron_longrl/data/collate.py",
        "megatron_longrl/media/layout.py",
        "megatron_longrl/data/templates.py",
    ),
}
"""Patterns below the checkout. ``mapping`` is what Megatron's and Hugging Face's names have to do
with each other: tables, their use, each family's rows, and norms that are fused. ``data`` is what
makes prompts and rows of tokens; files are read elsewhere."""


def files_of(area: str, root: Path) -> list[str]:
    """Paths of an area's files below ``root``, sorted.

    Raises:
        FileNotFoundError: a pattern finds nothing, so that it has outlived its files.
    """
    found: set[str] = set()
    for pattern in AREAS[area]:
        paths = [path.relative_to(root).as_posix() for path in root.glob(pattern)]
        if not paths:
            raise FileNotFoundError(f"no {pattern} in {root}")
        found.update(paths)
    return sorted(found)


def all_files(root: Path) -> list[str]:
    """Paths of the files of all areas."""
    return [path for area in AREAS for path in files_of(area, root)]
