"""A folder of diffusers, whose frozen parts are loaded one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.errors import UserError, brief
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.platforms import platform


class DiffusersFolder:
    """The folder of ``--diffusers-folder``, as diffusers' ``save_pretrained`` writes it.

    Raises:
        UserError: its list of parts cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self.index_file = self.path / "model_index.json"
        try:
            index = json.loads(self.index_file.read_text(encoding="utf-8"))
            self.pipeline = index.get("_class_name")
            """The name of the pipeline's class."""
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"--diffusers-folder: {self.index_file} cannot be read: {brief(error)}; give a "
                "folder that diffusers' save_pretrained has written"
            ) from None
        self.index: Mapping[str, Any] = index

    def check(self, pipeline: str, parts: Sequence[str]) -> None:
        """Check that the folder is of a pipeline, and has its parts.

        Raises:
            UserError: it is of another one, or a part is missing.
        """
        if self.pipeline != pipeline:
            raise UserError(
                f"--diffusers-folder: {self.index_file} is of {self.pipeline}, not of {pipeline}"
            )
        missing = [name for name in parts if not (self.path / name).is_dir()]
        if missing:
            raise UserError(f"--diffusers-folder: {self.path} has no {', '.join(missing)}")

    def width(self, part: str, setting: str, default: int) -> int:
        """Read a number of channels from the settings of a part, without loading the part.

        Args:
            default: the number that the part's class takes where none is written.

        Raises:
            UserError: the settings cannot be read.
        """
        return Settings.of(self.path / part / "config.json").whole(setting, default, most=WIDEST)

    def load(self, kind: Any, part: str = "", **options: Any) -> Any:
        """Load a part on this rank's device; pickles are not read.

        Args:
            kind: the class of the part.
            part: the name of its folder; empty for a pipeline.
            options: the options of ``from_pretrained``.

        Raises:
            UserError: diffusers cannot load it.
        """
        folder = self.path / part
        try:
            found = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, **options
            )
        except Exception as error:
            raise UserError(
                f"--diffusers-folder: {folder} cannot be loaded by diffusers: {brief(error)}"
            ) from None
        return found.to(platform.device)
