"""Folders of other libraries that hold a model, told by the file that describes it."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"
"""Describes a model of transformers."""
PIPELINE = "model_index.json"
"""Lists the components of a pipeline of diffusers."""


def is_model_folder(folder: str | Path) -> bool:
    """Whether a folder looks like one of transformers or diffusers, and not like a run."""
    return is_pipeline_folder(folder) or (Path(folder) / CONFIG).is_file()


def is_pipeline_folder(folder: str | Path) -> bool:
    """Whether a folder looks like a pipeline of diffusers."""
    return (Path(folder) / PIPELINE).is_file()
