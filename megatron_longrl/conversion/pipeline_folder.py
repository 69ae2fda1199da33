"""Reading folders of diffusers' pipelines: the component that is trained, and what lies beside it.

Weights are read from safetensors only, and nothing of the folder is run. Writing is in
:mod:`megatron_longrl.conversion.pipeline_writer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megatron_longrl.config.model_folders import PIPELINE
from megatron_longrl.conversion.mapping import mapping_table
from megatron_longrl.conversion.tensor_folder import DIFFUSERS, TensorFolder
from megatron_longrl.errors import UserError
from megatron_longrl.models.diffusers_format import DiffusersFormat
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.policy import POLICIES
from megatron_longrl.models.sizes import check_sizes
from megatron_longrl.regular_file import LARGEST_TEXT, check_regular

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_SCHEDULER = Path("scheduler", "scheduler_config.json")


def diffusers_formats() -> dict[str, DiffusersFormat]:
    """The formats of the policies that have one, by model family."""
    found = {}
    for name in POLICIES.names():
        weights = POLICIES.find(name).weights
        if weights is not None and weights.diffusers is not None:
            found[name] = weights.diffusers
    return found


class PipelineFolder:
    """A folder that a pipeline's ``save_pretrained`` has written.

    Raises:
        UserError: no such folder, or one of a pipeline that is not known.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder: give one with a pipeline of diffusers")
        check_regular(self.folder, LARGEST_TEXT)
        self.index = Settings.of(self.folder / PIPELINE)
        self.model_family, self.format = self._known()
        self._held: TensorFolder | None = None

    def _known(self) -> tuple[str, DiffusersFormat]:
        kind, known = self.index.values.get("_class_name"), diffusers_formats()
        for family, found in known.items():
            if found.pipeline == kind:
                return family, found
        pipelines = ", ".join(found.pipeline for found in known.values())
        raise self.index.wrong("_class_name", f"not supported, only {pipelines}")

    def components(self) -> list[str]:
        """The names of the components that the pipeline has, which are folders.

        Raises:
            UserError: one of them is missing.
        """
        names = []
        for name, kind in self.index.values.items():
            if not isinstance(kind, list) or kind == [None, None]:
                continue
            if Path(name).name != name or not (self.folder / name).is_dir():
                raise UserError(
                    f"{self.folder} has no folder {name}, which its {PIPELINE} names: download it "
                    "whole"
                )
            names.append(name)
        return names

    def settings(self) -> Settings:
        """The settings of the component that is trained.

        Raises:
            UserError: there are none, or they are of another class.
        """
        place = self.folder / self.format.component
        if not place.is_dir():
            raise UserError(f"{self.folder} has no folder {self.format.component}")
        check_regular(place, LARGEST_TEXT)
        settings = Settings.of(place / "config.json")
        if settings.values.get("_class_name") != self.format.model_class:
            raise settings.wrong("_class_name", f"not supported, only {self.format.model_class}")
        if "quantization_config" in settings:
            method = settings.section("quantization_config").values.get("quant_method", "unknown")
            raise settings.wrong(
                "quantization_config",
                f"of quantized weights ({method}), which are not supported: give the folder that "
                "they were made from",
            )
        return settings

    def config_fields(self) -> dict[str, Any]:
        """Fields of :class:`~megatron_longrl.config.Config` that the folder determines.

        Raises:
            UserError: naming the file and the setting that is missing or not supported.
        """
        settings = self.settings()
        fields = self.format.config_from(settings)
        if DIFFUSERS.are_in(settings.path.parent):
            check_sizes(self._shape, self.format.sizes(fields), lambda name: settings.path)
        schedule = self.folder / _SCHEDULER
        if schedule.is_file():
            fields |= self.format.scheduler_fields(Settings.of(schedule))
        return {
            "model_family": self.model_family,
            **fields,
            "diffusers_folder": str(self.folder),
        }

    def read(self, name: str) -> Tensor:
        """One tensor by the name of the mapping table.

        Raises:
            UserError: there is none.
        """
        tensors, fused = self._tensors(), self.format.fused(name)
        if name not in tensors and fused is not None and fused.name in tensors:
            whole = tensors.read(fused.name)
            if len(whole) % fused.parts:
                raise UserError(
                    f"{tensors.folder}: the tensor {tensors.stored_as(fused.name)} "
                    f"{list(whole.shape)} does not hold {fused.parts} equal parts"
                )
            return whole.chunk(fused.parts)[fused.part]
        return tensors.read(name)

    def check(self, config: ModelConfig) -> None:
        """Compare the names in the files with the table.

        Raises:
            UserError: naming a tensor that is missing, one that the model has no place for, or a
                fused copy that differs.
        """
        tensors = self._tensors()
        names = {name for mapping in mapping_table(config).expand() for name in mapping.hf_params}
        known = set(names)
        for name in sorted(names):
            fused = self.format.fused(name)
            if fused is None or fused.name not in tensors:
                tensors.require(name)
                continue
            known.add(fused.name)
            if name in tensors:
                self._check_fused(name)
        for name in tensors.names():
            if name not in known:
                raise UserError(
                    f"{tensors.folder} holds the tensor {tensors.stored_as(name)}, which the model "
                    "has no place for"
                )

    def _check_fused(self, name: str) -> None:
        """diffusers computes with the fused copy alone, and trains whichever it computes with."""
        tensors, fused = self._tensors(), self.format.fused(name)
        assert fused is not None, "the caller has asked"
        parts = tensors.read(fused.name).chunk(fused.parts)
        if not parts[fused.part].equal(tensors.read(name)):
            raise UserError(
                f"{tensors.folder}: {tensors.stored_as(name)} differs from its copy in "
                f"{tensors.stored_as(fused.name)}: remove the one that is out of date"
            )

    def listed(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Path and name, shape and type of every tensor of the component that is trained."""
        tensors = self._tensors()
        for name in tensors.names():
            stored = str(Path(self.format.component) / tensors.stored_as(name))
            yield (stored, *tensors.describe(name))

    def is_bf16(self) -> bool:
        """Whether all weights are bfloat16; any others are held in float32, which loses nothing."""
        tensors = self._tensors()
        return all(tensors.describe(name)[1] == "BF16" for name in tensors.names())

    def unused_tensors(self, config: ModelConfig) -> Mapping[str, Tensor]:
        """None: frozen components stay in the folder."""
        return {}

    def files(self) -> dict[str, Path]:
        """None: frozen components stay in the folder."""
        return {}

    def _tensors(self) -> TensorFolder:
        if self._held is None:
            component = self.format.component
            self._held = TensorFolder(
                self.folder / component, lambda stored: f"{component}/{stored}", DIFFUSERS
            )
        return self._held

    def _shape(self, name: str) -> tuple[int, ...] | None:
        tensors = self._tensors()
        return tensors.describe(name)[0] if name in tensors else None
