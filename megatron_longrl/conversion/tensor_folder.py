"""The safetensors files of a folder, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_longrl.errors import UserError, brief
from megatron_longrl.models.hf_settings import Settings

_MAPPED_BYTES = 1 << 30
"""Pages of a mapped file count as this process's memory: it is mapped anew after so much."""


_BROKEN = (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError)
"""Exceptions that safetensors and torch raise for broken files."""

_LONGEST_NAME = 255
"""Characters of a file's name."""


@dataclass(frozen=True)
class WeightFiles:
    """The names that a library gives the files of a model's weights."""

    library: str
    stem: str
    index_first: bool
    """Whether an index is looked for before the one file of all weights."""

    @property
    def whole(self) -> str:
        """The file of all weights."""
        return f"{self.stem}.safetensors"

    @property
    def index(self) -> str:
        """The list of several files."""
        return f"{self.stem}.safetensors.index.json"

    def shard(self, number: int, count: int) -> str:
        """One of several files, counted from 1."""
        return f"{self.stem}-{number:05d}-of-{count:05d}.safetensors"

    def are_in(self, folder: Path) -> bool:
        """Whether a folder has weights."""
        return (folder / self.whole).exists() or (folder / self.index).exists()

    def of(self, folder: Path) -> list[Path]:
        """The files that the library reads; no other files beside them are used.

        Raises:
            UserError: there are none, or the index is broken.
        """
        if (folder / self.index).exists() and (
            self.index_first or not (folder / self.whole).is_file()
        ):
            return self._listed(folder)
        if (folder / self.whole).is_file():
            return [folder / self.whole]
        raise UserError(f"{folder} holds no {self.whole} and no {self.index}{self._else(folder)}")

    def _listed(self, folder: Path) -> list[Path]:
        weight_map = Settings.of(folder / self.index).section("weight_map")
        files = weight_map.values.values()
        if not files:
            raise UserError(f"{folder / self.index} names no file of weights in weight_map")
        for name, file in weight_map.values.items():
            is_name = isinstance(file, str) and file.isprintable() and file == Path(file).name
            if not is_name or not 0 < len(file) <= _LONGEST_NAME:
                raise weight_map.wrong(name, "not the name of a file beside the index")
        return [folder / name for name in sorted(set(files))]

    def _else(self, folder: Path) -> str:
        """A hint at the files that are there in place of weights, for the message."""
        others = [
            path.name
            for ending in ("safetensors", "bin", "pt")
            for path in folder.glob(f"*.{ending}")
        ]
        if not others:
            return ""
        first = min(others, key=lambda name: (not name.endswith(".safetensors"), name))
        if not first.endswith(".safetensors"):
            return f"; {first} is a pickle, convert it to safetensors"
        return f"; {self.library} does not read {first} either: give it that name, or an index"


TRANSFORMERS = WeightFiles("transformers", "model", index_first=False)
DIFFUSERS = WeightFiles("diffusers", "diffusion_pytorch_model", index_first=True)


class TensorFolder:
    """The safetensors files of one folder, read lazily.

    Args:
        rename: name in the files -> name by which a tensor is asked for.
        files: the names of the files.

    Raises:
        UserError: a file is missing, truncated or of another format.
    """

    def __init__(
        self, folder: Path, rename: Callable[[str], str] = str, files: WeightFiles = TRANSFORMERS
    ) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, str]] = {}  # file, and name in the file
        self._open: tuple[Path, Any] | None = None
        self._bytes_read = 0
        for path in files.of(folder):
            for stored in self._stored_names(path):
                self._where[rename(stored)] = path, stored

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def require(self, name: str) -> None:
        """Raises :class:`UserError` where there is no such tensor."""
        if name not in self._where:
            raise UserError(f"{self.folder} lacks the tensor {name.partition('/')[2]}")

    def stored_as(self, name: str) -> str:
        """Return the name of a tensor in its file."""
        return self._where[name][1]

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype (as safetensors calls it) of a tensor, from the file's header."""
        path, stored = self._where[name]
        try:
            entry = self._handle(path).get_slice(stored)
            return tuple(entry.get_shape()), str(entry.get_dtype())
        except _BROKEN as error:
            raise UserError(f"{path}: tensor {stored} cannot be read: {brief(error)}") from None

    def read(self, name: str) -> Tensor:
        """One tensor; it is read from the mapped file when it is used.

        Raises:
            UserError: there is no such tensor.
        """
        self.require(name)
        path, stored = self._where[name]
        try:
            tensor: Tensor = self._handle(path).get_tensor(stored)
        except _BROKEN as error:
            raise UserError(f"{path}: tensor {stored} cannot be read: {brief(error)}") from None
        self._bytes_read += tensor.nbytes
        return tensor

    def _stored_names(self, path: Path) -> list[str]:
        names: list[str] = self._handle(path).keys()
        return names

    def _handle(self, path: Path) -> Any:
        if self._open is None or self._open[0] != path or self._bytes_read > _MAPPED_BYTES:
            self._open = None
            try:
                if not path.is_file():  # a named pipe would be waited for without an end
                    raise UserError(f"{path} is named by the index but is no file")
                self._open = path, safe_open(path, framework="pt")
                self._bytes_read = 0
            except _BROKEN as error:
                raise UserError(
                    f"{path} is truncated or no safetensors file: {brief(error)}"
                ) from None
        return self._open[1]
