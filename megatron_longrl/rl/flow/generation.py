"""The program ``longrl generate``: pictures of prompts, as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from megatron_longrl.atomic_file import atomic_write_text, writable
from megatron_longrl.config import Config
from megatron_longrl.data.rows import Row, load_rows
from megatron_longrl.errors import UserError
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rl.flow.drawing import Drawer
from megatron_longrl.training.run import build_run

LIST = "pictures.jsonl"
"""The file that lists all pictures; it is written last."""


def generate(config: Config) -> None:
    """Draw ``--num-samples`` pictures of every prompt into the ``--output`` folder."""
    folder = Path(config.evaluation.output or "")
    drawer = Drawer(build_run(config, "generate"))
    groups = drawer.run.groups
    with raise_on_all_ranks(groups.gloo_group):
        rows = load_rows(config.generation.prompts, "prompts.jsonl", answers=False)
        if drawer.run.is_writer:
            _check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
    prompts, samples = [row.problem for row in rows], config.generation.num_samples
    records: list[dict[str, Any]] = []
    seed = config.training.seed
    for names, pictures in drawer.draw(prompts, samples, "generate"):
        with raise_on_all_ranks(groups.replica_gloo_group):
            for place, pixels in pictures.items():
                number, index = names[place]
                file = f"{number:05d}_{index:02d}.png"
                _write(folder / file, pixels)
                records.append(_record(rows[number], number, index, file, seed))
    parts = gather_objects(groups.gloo_group, records)
    with raise_on_all_ranks(groups.gloo_group):
        if drawer.run.is_writer:
            every = sorted((r for part in parts for r in part), key=lambda r: str(r["file"]))
            lines = [json.dumps(record, ensure_ascii=False) for record in every]
            atomic_write_text(folder / LIST, "\n".join(lines) + "\n")
            sys.stdout.write(f"{len(every)} pictures of {len(rows)} prompts in {folder}\n")


def _record(row: Row, number: int, index: int, file: str, seed: int) -> dict[str, Any]:
    return {
        "prompt": row.problem,
        "seed": seed,
        "prompt_number": number,
        "sample": index,
        "file": file,
        **({"metadata": dict(row.metadata)} if row.metadata else {}),
    }


def _write(path: Path, pixels: Any) -> None:
    from PIL import Image

    try:
        with writable(path) as target:
            Image.fromarray(pixels).save(target, "PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} exists and is not empty: name another folder")
