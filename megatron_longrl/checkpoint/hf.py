"""Reading VILA checkpoints as Hugging Face folders.

A checkpoint is a folder with a top ``config.json`` and three folders, each with its own: ``llm/``
(Qwen2ForCausalLM and its tokenizer), ``vision_tower/`` (SiglipVisionModel) and ``mm_projector/``.
Weights are read from safetensors only, one tensor at a time; nothing is unpickled and no code of
the folder runs. Writing is in :mod:`megatron_longrl.checkpoint.hf_writer`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from megatron_longrl.checkpoint.mapping import ALL_PARTS, import_named_tensors, mapping_table
from megatron_longrl.checkpoint.table import Tied
from megatron_longrl.errors import UserError
from megatron_longrl.parallel.agree import together

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

ARCHITECTURES = {"llm": "Qwen2ForCausalLM", "vision_tower": "SiglipVisionModel"}
"""What the folders may hold."""

PREFIXES = {"llm": "", "vision_tower": "vision_model.", "mm_projector": ""}
"""In front of every tensor's name; newer transformers leave it out."""

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files of ``llm/`` that make the tokenizer."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: no such file, or it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is this the folder of a checkpoint?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


class TensorFolder:
    """The safetensors files of one folder, read lazily.

    Raises:
        UserError: a file is missing, truncated or of another format.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, str]] = {}  # file, and name in the file
        self._open: dict[Path, Any] = {}
        index = folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map", {})
            paths = sorted({folder / name for name in weight_map.values()})
        else:
            paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            pickles = [p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))]
            found = f"; {pickles[0]} is a pickle, convert it to safetensors" if pickles else ""
            raise UserError(f"{folder} holds no *.safetensors{found}")
        for path in paths:
            for stored in self._stored_names(path):
                name = stored if stored.startswith(prefix) else prefix + stored
                self._where[name] = path, stored

    def names(self) -> list[str]:
        """Names of all tensors, with the prefix."""
        return list(self._where)

    def read(self, name: str) -> Tensor:
        """One tensor; the file stays mapped, the tensor is read when it is used.

        Raises:
            UserError: there is no such tensor.
        """
        if name not in self._where:
            raise UserError(f"{self.folder} lacks the tensor {name}")
        path, stored = self._where[name]
        try:
            tensor: Tensor = self._handle(path).get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: tensor {name} cannot be read: {error}") from error
        return tensor

    def _stored_names(self, path: Path) -> list[str]:
        names: list[str] = self._handle(path).keys()
        return names

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise UserError(f"{path} is named by the index but does not exist") from None
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is truncated or no safetensors file: {error}") from error
        return self._open[path]


class VilaFolder:
    """A VILA checkpoint on disk.

    Raises:
        UserError: a folder or file is missing, or the architecture is another one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(
                f"{folder} is not a folder: give one with llm/, vision_tower/, mm_projector/"
            )
        self.config = read_json(self.folder / "config.json")
        self.part_configs = {
            part: read_json(self.folder / part / "config.json") for part in ALL_PARTS
        }
        for part, expected in ARCHITECTURES.items():
            found = (self.part_configs[part].get("architectures") or ["nothing"])[0]
            if found != expected:
                path = self.folder / part / "config.json"
                raise UserError(
                    f"{path} says architecture {found}, only {expected} is supported here"
                )
        self._tensors: dict[str, TensorFolder] = {}

    def tensors(self, part: str) -> TensorFolder:
        """The weights of ``llm``, ``vision_tower`` or ``mm_projector``."""
        if part not in self._tensors:
            self._tensors[part] = TensorFolder(self.folder / part, PREFIXES[part])
        return self._tensors[part]

    def read(self, name: str) -> Tensor:
        """One tensor by the name of the mapping table, such as ``llm/model.norm.weight``."""
        part, _, tensor = name.partition("/")
        return self.tensors(part).read(tensor)

    def check(self, config: Config) -> None:
        """Compare the names in the files with the table.

        Raises:
            UserError: naming a tensor that the model has no place for, or a tied copy that differs.
        """
        table = mapping_table(config)
        known = {name for row in table.expand() for name in row.hf}
        for row in table.expand():
            if isinstance(row, Tied) and row.alias:
                known.add(row.alias)
                self._check_tied(row)
        for part in ("llm", "mm_projector"):
            for name in self.tensors(part).names():
                if f"{part}/{name}" not in known and not name.endswith(table.ignored):
                    raise UserError(
                        f"{self.folder / part} holds the tensor {name}, "
                        "which the model has no place for"
                    )

    def unused_tensors(self, config: Config) -> dict[str, Tensor]:
        """Tensors of the tower that never run (layers after the selected one, last norm, head).

        They are carried along so that an export is complete and equal to its source.
        """
        table = mapping_table(config)
        used = {name for row in table.expand(["vision_tower"]) for name in row.hf}
        folder = self.tensors("vision_tower")
        names = [n for n in folder.names() if not n.endswith(table.ignored)]
        return {
            f"vision_tower/{n}": folder.read(n) for n in names if f"vision_tower/{n}" not in used
        }

    def _check_tied(self, row: Tied) -> None:
        part, _, alias = row.alias.partition("/")
        folder = self.tensors(part)
        if alias not in folder.names():
            return
        if not folder.read(alias).equal(self.read(row.hf[0])):
            raise UserError(
                f"{folder.folder} ties its embeddings, but {alias} differs from {row.hf[0]}: "
                f"set tie_word_embeddings to false in {folder.folder / 'config.json'}"
            )


def load_hf_weights(
    folder: str | Path,
    model: nn.Module | Mapping[str, nn.Module],
    config: Config,
    groups: ParallelGroups,
) -> None:
    """Fill a model with the weights of a VILA folder, each rank its own shards.

    Optimizers must refresh their fp32 copies afterwards (``optimizer.reload_model_params()``).

    Args:
        model: object or mapping with ``language_model`` and ``encoder``.

    Raises:
        UserError: on all ranks, naming the first tensor and file that are wrong.
    """
    with together(groups.control):
        source = VilaFolder(folder)
        source.check(config)
        import_named_tensors(model, config, groups, source.read)
    logger.info("loaded the weights of %s", folder)


def is_hf_folder(folder: str | Path) -> bool:
    """Whether a folder looks like a VILA checkpoint and not like a Megatron one."""
    return all((Path(folder) / part).is_dir() for part in ALL_PARTS)
