"""Checkpoints that hold nothing, to look at their names, sizes and state files."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_longrl.checkpoint.folder import CORE_FILES, STATE_FILE, TRACKER, iteration_folder
from tests.tiny_vila import TINY

CONFIG = {**TINY, "vocab_size": 70}


def write_checkpoint(directory: Path, iteration: int = 3) -> Path:
    """Complete as far as names and sizes tell, and the newest one."""
    folder = iteration_folder(directory, iteration)
    folder.mkdir(parents=True)
    for name in CORE_FILES:
        (folder / name).write_bytes(b"core")
    state = {
        "format": 1,
        "iteration": iteration,
        "config": CONFIG,
        "layout": {"world_size": 1},
        "optimizers": ["language_model"],
        "scheduler_steps": 24,
        "state": {"consumed_samples": 24},
        "files": dict.fromkeys(CORE_FILES, 4),
    }
    (folder / STATE_FILE).write_text(json.dumps(state))
    (directory / TRACKER).write_text(f"{iteration}\n")
    return folder
