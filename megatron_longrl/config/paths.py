"""Fields that are paths: made absolute where they are kept, and looked up before a run starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longrl.config.data_sources import split_weight

PATH_FIELDS = (
    *("train_data_path", "valid_data_path", "data", "prompts", "output", "tokenizer_model"),
    *("save", "load", "pretrained_checkpoint", "tensorboard_dir", "embedding_cache_dir"),
    *("rollout_record_dir", "replay_rollouts", "rollout_token_file"),
    *("judge_prompt", "judge_cache", "reward_function", "diffusers_folder"),
)
"""Fields that hold a path, or a list of paths, perhaps with more behind it (FILE.py:NAME)."""

_FILES_OR_NAMES = ("chat_template", "prompt_template")
"""Fields that hold the path of a file, or the name of what the package has."""

_READ = {
    "pretrained_checkpoint": "folder",
    "load": "folder",
    "diffusers_folder": "folder",
    "tokenizer_model": "file or folder",
    "train_data_path": "file or folder",
    "valid_data_path": "file or folder",
    "data": "file or folder",
    "prompts": "file or folder",
    "replay_rollouts": "folder",
    "rollout_token_file": "file",
}
"""Fields whose paths are read, and the kinds of files that they name."""

_READ_BY = {
    "train_data_path": ("sft", "rl"),
    "valid_data_path": ("sft", "rl"),
    "data": ("evaluate",),
    "prompts": ("generate",),
    "replay_rollouts": ("rl",),
}
"""Entry points that read these fields; the others are read by all."""


def absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration with absolute paths, so that they mean the same elsewhere."""
    changed = dict(values)
    files = [name for name in _FILES_OR_NAMES if os.path.isfile(changed.get(name) or "")]
    for name in (*PATH_FIELDS, *files):
        value = changed.get(name)
        if isinstance(value, list):
            changed[name] = [_absolute(path) for path in value]
        elif value:
            changed[name] = os.path.abspath(value)
    return changed


def _absolute(path: str) -> str:
    bare, weight = split_weight(path)
    return os.path.abspath(path) if weight is None else f"{os.path.abspath(bare)}:{weight:g}"


def run_folder(checkpoint: Path) -> Path:
    """The ``--save`` folder of the run that a checkpoint ``iter_…`` belongs to."""
    return checkpoint.parent if checkpoint.name.startswith("iter_") else checkpoint


def missing_paths(values: Mapping[str, Any], entry: str) -> list[str]:
    """Return a line for every path that is read and does not exist.

    ``--load`` may name the folder that ``--save`` is going to make: the run then starts anew.
    """
    lines = []
    for name, kind in _READ.items():
        if entry not in _READ_BY.get(name, (entry,)):
            continue
        if (
            name == "load"
            and values.get("load") == values.get("save")
            and entry in ("sft", "rl", "serve")
        ):
            continue
        value = values.get(name)
        for path in value if isinstance(value, list) else [value]:
            path = split_weight(path)[0] if isinstance(path, str) else path
            if isinstance(path, str) and path and not os.path.exists(path):
                lines.append(f"--{name.replace('_', '-')} {path}: no such {kind}{_hint(path)}")
    return lines


def _hint(path: str) -> str:
    """Return a hint at the path that may have been meant."""
    if path.startswith(("http://", "https://", "s3://", "gs://", "hf://")):
        return "; addresses are not read, download it first"
    parent = Path(path).parent
    if not path.startswith(("/", ".")) and path.count("/") == 1 and not parent.exists():
        name = Path(path).name
        return (
            f"; if it is a model of the Hugging Face Hub, download it: hf download {path} "
            f"--local-dir {name}"
        )
    return ""
