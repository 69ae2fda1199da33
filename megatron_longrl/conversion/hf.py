"""Reading Hugging Face checkpoints of all families of language models, and the choice between them
and pipelines of diffusers.

A checkpoint is a folder with a ``config.json``, which names the family, and weights in it or in
folders of its parts. Weights are read from safetensors only, one tensor at a time; nothing is
unpickled and no code of the folder runs. Writing is in :mod:`megatron_longrl.conversion.hf_writer`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from megatron_longrl.config.model_folders import CONFIG, PIPELINE, is_pipeline_folder
from megatron_longrl.config.tokenizer_files import tokenizer_fields
from megatron_longrl.conversion.mapping import import_named_tensors, mapping_table
from megatron_longrl.conversion.pipeline_folder import PipelineFolder
from megatron_longrl.conversion.tensor_folder import TRANSFORMERS, TensorFolder
from megatron_longrl.errors import UserError
from megatron_longrl.json_file import read_json
from megatron_longrl.models.family import family_of, find_family
from megatron_longrl.models.hf_settings import HfConfig, Settings
from megatron_longrl.models.param_mapping import TiedMapping
from megatron_longrl.models.sizes import check_sizes
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.regular_file import LARGEST_TEXT, check_regular

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups

logger = logging.getLogger(__name__)

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
"""Files that make a tokenizer."""

CARRIED_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "spk_dict.pt",
)
"""Other files that an export takes over from the checkpoint that a model came from."""


class HfFolder:
    """A checkpoint on disk.

    Raises:
        UserError: no folder, no ``config.json``, or one of a family that is not known.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder: give one with a Hugging Face checkpoint")
        check_regular(self.folder, LARGEST_TEXT)
        self.settings = Settings.of(self.folder / "config.json")
        self.config = self.settings.values
        self.model_family = family_of(self.config, self.settings.path)
        self.family = find_family(self.model_family)
        for part in dict.fromkeys(self.family.folders.values()):
            if (self.folder / part).is_dir():
                check_regular(self.folder / part, LARGEST_TEXT)
            _refuse_quantized(self.folder / part / "config.json")
        self._tensors: dict[str, TensorFolder] = {}

    def tensors(self, folder: str) -> TensorFolder:
        """The weights in a folder of the checkpoint, by the names of the mapping table."""
        if folder not in self._tensors:
            rename = partial(self.family.table_name, folder)
            self._tensors[folder] = TensorFolder(self.folder / folder, rename)
        return self._tensors[folder]

    def read(self, name: str) -> Tensor:
        """One tensor by the name of the mapping table, such as ``llm/model.norm.weight``."""
        folder, _ = self.family.locate(name)
        return self.tensors(folder).read(name)

    def files(self) -> dict[str, Path]:
        """Files that an export of this model takes over, by their paths in the folder."""
        folders = dict.fromkeys(("", *self.family.folders.values()))
        names = [Path(folder) / name for folder in folders for name in CARRIED_FILES]
        return {str(n): self.folder / n for n in names if (self.folder / n).is_file()}

    def config_fields(self) -> dict[str, Any]:
        """Fields of :class:`~megatron_longrl.config.Config` that the checkpoint determines.

        Those of the model section, and tokenizer_type and tokenizer_model where there is a
        tokenizer.

        Raises:
            UserError: naming the file and the setting that is missing or not supported.
        """
        fields = self.family.config_from_hf(HfConfig(self.folder, self.settings))
        if self._has_weights():
            check_sizes(self._shape, self.family.sizes(fields), self._settings_file)
            if self._is_untied(fields):
                fields["untie_embeddings_and_output_weights"] = True
        return {
            "model_family": self.model_family,
            **fields,
            **tokenizer_fields(self.folder / self.family.tokenizer_folder),
        }

    def _has_weights(self) -> bool:
        """Whether there are any; settings can be read without."""
        folders = [self.folder / folder for folder in self.family.folders.values()]
        return all(TRANSFORMERS.are_in(folder) for folder in folders)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape by its name in the mapping table, None where there is none."""
        folder = self.tensors(self.family.locate(name)[0])
        return folder.describe(name)[0] if name in folder else None

    def _settings_file(self, name: str) -> Path:
        """The file with the settings of the part of a tensor."""
        return self.folder / self.family.locate(name)[0] / "config.json"

    def _is_untied(self, fields: dict[str, Any]) -> bool:
        """Whether settings tie two tensors that are there and differ: transformers 5 then leaves
        both as they are."""
        embedding, head = self.family.embeddings
        if fields["untie_embeddings_and_output_weights"]:
            return False
        if self._shape(embedding) is None or self._shape(head) is None:
            return False
        if self.read(embedding).equal(self.read(head)):
            return False
        logger.warning(
            "%s ties its embeddings, but lm_head.weight differs from them: it is kept apart",
            self.settings.path,
        )
        return True

    def listed(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Path and name, shape and type of every tensor."""
        for folder in dict.fromkeys(self.family.folders.values()):
            tensors = self.tensors(folder)
            for name in tensors.names():
                yield (str(Path(folder) / tensors.stored_as(name)), *tensors.describe(name))

    def check(self, config: ModelConfig) -> None:
        """Compare the names in the files with the table.

        Raises:
            UserError: naming a tensor that is missing, one that the model has no place for, or a
                tied copy that differs.
        """
        table = mapping_table(config)
        known: set[str] = set()
        for mapping in table.expand():
            for name in mapping.hf_params:
                self.tensors(self.family.locate(name)[0]).require(name)
            known.update(mapping.hf_params)
            if isinstance(mapping, TiedMapping) and mapping.alias:
                known.add(mapping.alias)
                self._check_tied(mapping)
        for name in self._other_tensors(config):
            part = name.partition("/")[0]
            if name not in known and part not in table.carried:
                folder = self.tensors(self.family.locate(name)[0])
                raise UserError(
                    f"{folder.folder} holds the tensor {folder.stored_as(name)}, "
                    "which the model has no place for"
                )

    def unused_tensors(self, config: ModelConfig) -> dict[str, Tensor]:
        """Tensors that never run, such as layers after the one that is selected.

        They are carried along so that an export is complete and equal to its source.
        """
        carried = mapping_table(config).carried
        names = self._other_tensors(config)
        return {n: self.read(n) for n in names if n.partition("/")[0] in carried}

    def _other_tensors(self, config: ModelConfig) -> list[str]:
        """Names that are in the files and not in the table, without those that are ignored."""
        table = mapping_table(config)
        used = {name for mapping in table.expand() for name in mapping.hf_params}
        folders = dict.fromkeys(self.family.folders.values())
        names = [name for folder in folders for name in self.tensors(folder).names()]
        return [n for n in names if n not in used and not n.endswith(table.ignored)]

    def _check_tied(self, mapping: TiedMapping) -> None:
        folder = self.tensors(self.family.locate(mapping.alias)[0])
        if mapping.alias not in folder:
            return
        if not folder.read(mapping.alias).equal(self.read(mapping.hf_params[0])):
            raise UserError(
                f"the run ties its embeddings, but in {folder.folder} "
                f"{folder.stored_as(mapping.alias)} differs from "
                f"{folder.stored_as(mapping.hf_params[0])}: give "
                "--untie-embeddings-and-output-weights"
            )


def open_model_folder(folder: str | Path) -> HfFolder | PipelineFolder:
    """A folder of transformers, or a pipeline of diffusers.

    Raises:
        UserError: it is neither, or of a kind that is not known.
    """
    if is_pipeline_folder(folder):
        return PipelineFolder(folder)
    settings = Path(folder) / CONFIG
    if settings.is_file() and "_diffusers_version" in read_json(settings):
        raise UserError(
            f"{settings} describes one component of a pipeline of diffusers: give the folder of "
            f"the whole pipeline, which has a {PIPELINE}"
        )
    return HfFolder(folder)


def config_from_hf(folder: str | Path) -> dict[str, Any]:
    """The fields of the configuration that a folder of transformers or diffusers determines."""
    return open_model_folder(folder).config_fields()


def load_hf_weights(
    folder: str | Path,
    model: nn.Module | Mapping[str, nn.Module],
    config: ModelConfig,
    groups: ParallelGroups,
) -> None:
    """Fill a model with the weights of a folder, each rank its own shards.

    Optimizers must refresh their fp32 copies afterwards (``optimizer.reload_model_params()``).

    Args:
        model: see :func:`~megatron_longrl.conversion.mapping.local_parameters`.

    Raises:
        UserError: on all ranks, naming the first tensor and file that are wrong.
    """
    with raise_on_all_ranks(groups.gloo_group):
        source = open_model_folder(folder)
        source.check(config)
        import_named_tensors(model, config, groups, source.read)
    logger.info("loaded the weights of %s", folder)


def _refuse_quantized(path: Path) -> None:
    """Raises :class:`UserError` where a ``config.json`` says that its weights are quantized."""
    settings = Settings.of(path)
    for place in (settings, settings.section("text_config"), settings.section("llm_cfg")):
        for name in ("quantization_config", "compression_config"):
            if name in place:
                method = place.section(name).values.get("quant_method", "unknown")
                raise UserError(
                    f"{path}: {name} says that the weights are quantized ({method}), which is not "
                    "supported: give the checkpoint in bf16 that they were made from"
                )
