"""The program ``longrl generate``: pictures or films of prompts, as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.atomic_file import atomic_write_text, writable
from megatron_longrl.config import Config
from megatron_longrl.data.rows import Row, load_rows
from megatron_longrl.errors import UserError
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.observability.film_sheet import write_film
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rl.flow.drawing import Drawer
from megatron_longrl.training.run import build_run

if TYPE_CHECKING:
    import numpy as np

_DIMENSIONS_OF_FILMS = 4
LIST = "pictures.jsonl"
"""The file that lists all pictures; it is written last."""


def generate(config: Config) -> None:
    """Draw ``--num-samples`` pictures or films of every prompt into the ``--output`` folder."""
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
    seed, section = config.training.seed, config.family_as(FlowSection)
    kind = "png" if section.frames is None else "webp"
    for names, pictures in drawer.draw(prompts, samples, "generate"):
        with raise_on_all_ranks(groups.replica_gloo_group):
            for place, pixels in pictures.items():
                number, index = names[place]
                file = f"{number:05d}_{index:02d}.{kind}"
                _write(folder / file, pixels, section.fps)
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


def _write(path: Path, pixels: np.ndarray, fps: int) -> None:
    from PIL import Image

    try:
        if pixels.ndim == _DIMENSIONS_OF_FILMS:
            write_film(path, pixels, fps)
            return
        with writable(path) as target:
            Image.fromarray(pixels).save(target, "PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} exists and is not empty: name another folder")
