"""Settings in files beside a tokenizer: the end tokens of a response, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_longrl.errors import UserError
from megatron_longrl.json_file import read_json
from megatron_longrl.regular_file import LARGEST_TEXT, read_regular

_MOST_END_IDS = 1000
"""The most tokens that may end a response."""

_SETTINGS = ("generation_config.json", "config.json")
"""Files in the order in which ``generate`` of transformers reads them."""


def end_ids_of(folder: Path, known: Container[int]) -> tuple[int, ...]:
    """``eos_token_id`` of generation_config.json; where there is none, of config.json.

    Args:
        folder: the folder of the tokenizer. In a checkpoint of this project the settings of the
            imported model are beside it.
        known: ids that have a token; others are left out, because they cannot be drawn.

    Returns:
        They are in the order of the file; there are none where no file names them.

    Raises:
        UserError: a file is broken, or tells something else than ids.
    """
    for name in _SETTINGS:
        for path in _beside(folder, name):
            ids = _ids_in(read_json(path), path)
            found = tuple(dict.fromkeys(i for i in ids if i in known))
            if found:
                return found
    return ()


def template_of_processor(folder: Path) -> str | None:
    """The template that transformers' processors of images and videos take, where it is not the
    tokenizer's: chat_template.json, unless there is a chat_template.jinja.

    Raises:
        UserError: the file is broken.
    """
    if (folder / "chat_template.jinja").is_file():
        return None
    for path in _beside(folder, "chat_template.json"):
        template = read_json(path).get("chat_template")
        if isinstance(template, str):
            return template
    return None


def _beside(folder: Path, name: str) -> Iterator[Path]:
    """Files of a name in a tokenizer's folder, and among the settings of a run's checkpoint."""
    kept = folder.parent / "hf_files"
    for place in (folder, kept / "llm", kept):
        if (place / name).is_file():
            yield place / name


def _ids_in(settings: dict[str, Any], path: Path) -> list[int]:
    """The end tokens that a file names; models of several parts name them for their text."""
    text = settings.get("text_config")
    value = settings.get("eos_token_id")
    if value is None and isinstance(text, dict):
        value = text.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(f"{path}: eos_token_id must be the id of a token, or a list of ids")
    if len(ids) > _MOST_END_IDS:
        raise UserError(
            f"{path}: eos_token_id has {len(ids)} ids, at most {_MOST_END_IDS} are read"
        )
    return ids


def largest_id(folder: Path) -> int:
    """Return the largest id of a token in the files of a tokenizer, at least 0.

    Libraries take time in proportion to it, so that it is looked at before they read the files. A
    file that cannot be read is left to them, which say what is wrong with it.
    """
    largest = 0
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json"):
        try:
            value = json.loads(read_regular(folder / name, LARGEST_TEXT))
        except (OSError, ValueError, RecursionError):
            continue
        for ids in _vocabularies(value):
            largest = max([largest, *(one for one in ids if isinstance(one, int))])
    return largest


def _vocabularies(value: Any) -> Iterator[Iterable[Any]]:
    """The ids of each table of tokens in a file."""
    if not isinstance(value, dict):
        return
    yield value.values()  # a file that is such a table
    model, added = value.get("model"), value.get("added_tokens")
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        yield model["vocab"].values()
    if isinstance(added, list):
        yield [token.get("id") for token in added if isinstance(token, dict)]
