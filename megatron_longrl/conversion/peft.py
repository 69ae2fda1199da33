"""LoRA adapters in the files of PEFT (https://huggingface.co/docs/peft).

``adapter_config.json`` and ``adapter_model.safetensors`` lie in the folders in which a family keeps
its weights. Tensors are named after the modules of transformers' class:
``base_model.model.<module>.lora_A.weight``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_longrl.atomic_folder import atomic_folder
from megatron_longrl.config.lora import lora_scale
from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.conversion.hf_writer import write_json
from megatron_longrl.conversion.mapping import mapping_table
from megatron_longrl.errors import UserError, brief
from megatron_longrl.models.family import Family, find_family
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.lora import merged_weight
from megatron_longrl.models.param_mapping import TensorMapping, adapter_mappings
from megatron_longrl.models.policy import find_policy

if TYPE_CHECKING:
    import torch

    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.lora import LoraSection

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FOR_DIFFUSERS = "pytorch_lora_weights.safetensors"
PREFIX = "base_model.model."

_OF_DIFFUSERS = ("r", "lora_alpha", "use_rslora", "lora_dropout", "bias", "target_modules")
"""Settings in the header of diffusers' file."""

Pair = tuple[Tensor, Tensor]
"""A [r, in] and B [out, r]."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}
"""Settings of which some values are implemented, None where there is none."""


class AdapterPlaces(Protocol):
    """The places of a model's weights in its folder: a
    :class:`~megatron_longrl.models.family.Family`, or a component of a pipeline."""

    @property
    def folders(self) -> Mapping[str, str]:
        """Part of the model -> folder."""

    def locate(self, name: str) -> tuple[str, str]:
        """Name of the mapping table -> (folder, name of the tensor in its files)."""

    @property
    def module_path(self) -> Callable[[str], str]:
        """Name of the mapping table -> name in the class of the folder."""


@dataclass(frozen=True)
class _Component:
    """A component of a pipeline of diffusers, whose adapters have a separate folder."""

    name: str

    @property
    def folders(self) -> Mapping[str, str]:
        return {self.name: ""}

    def locate(self, name: str) -> tuple[str, str]:
        return "", name.partition("/")[2]

    @property
    def module_path(self) -> Callable[[str], str]:
        return lambda name: name.partition("/")[2]


def adapter_places(config: ModelConfig) -> AdapterPlaces:
    """The places of a model's adapters."""
    policy = find_policy(config.model.family)
    if policy is None or policy.weights is None or policy.weights.diffusers is None:
        return find_family(config.model.family)
    return _Component(policy.weights.diffusers.component)


def adapters_of(
    config: ModelConfig, read: Callable[[TensorMapping], Pair | None]
) -> dict[str, Pair]:
    """Adapters of a model by the names of the Hugging Face weights that they are beside.

    Args:
        read: gives the full adapter of a parameter of the mapping table.
    """
    found: dict[str, Pair] = {}
    for mapping in mapping_table(config).expand():
        pair = read(mapping) if mapping.exported else None
        if pair is None:
            continue
        a, b = (
            part.split(full) for part, full in zip(adapter_mappings(mapping), pair, strict=True)
        )
        found |= zip(mapping.hf_params, zip(a, b, strict=True), strict=True)
    return found


def write_adapters(
    folder: str | Path,
    config: ModelConfig,
    adapters: Mapping[str, Pair],
    *,
    base: Path,
    dtype: torch.dtype | None = None,
    unused: Collection[str] = (),
) -> None:
    """Write a folder for PEFT, aside first.

    Args:
        folder: must not exist, or be empty.
        config: the configuration of the training, with its --lora fields.
        adapters: see :func:`adapters_of`.
        base: Hugging Face folder of the model that the adapters belong to.
        dtype: the data type of the tensors; by default it is not changed.
        unused: weights that the base has beside those of the mapping table.

    Raises:
        UserError: the folder exists.
    """
    family = adapter_places(config)
    completion = family.completion(config) if isinstance(family, Family) else {}
    table = {
        n
        for mapping in mapping_table(config).expand()
        for n in mapping.hf_params
        if n.endswith(".weight")
    }
    others = table.union(unused, completion) - adapters.keys()
    with atomic_folder(Path(folder)) as aside:
        for sub in dict.fromkeys(family.locate(name)[0] for name in adapters):
            mine = {n: pair for n, pair in adapters.items() if family.locate(n)[0] == sub}
            modules = [_module(family, name) for name in mine]
            beside = [_module(family, n) for n in others if family.locate(n)[0] == sub]
            tensors = {}
            for module, pair in zip(modules, mine.values(), strict=True):
                for letter, tensor in zip("AB", pair, strict=True):
                    # safetensors refuses tensors that share memory, as those of fused weights do.
                    value = tensor.to(dtype or tensor.dtype).contiguous().clone()
                    tensors[f"{PREFIX}{module}.lora_{letter}.weight"] = value
            (aside / sub).mkdir(exist_ok=True)
            save_file(tensors, aside / sub / WEIGHTS, metadata={"format": "pt"})
            # safetensors lets only the owner read; the export's folder follows the umask.
            (aside / sub / WEIGHTS).chmod(aside.stat().st_mode & 0o666)
            settings = {
                **_settings(config.lora),
                "task_type": "CAUSAL_LM" if _is_language_model(family, sub) else None,
                "base_model_name_or_path": str(base / sub),
                "target_modules": target_modules(modules, beside),
            }
            write_json(aside / sub / SETTINGS, settings)
        if isinstance(family, _Component):
            _write_for_diffusers(aside, family.name, tensors, settings)


def _write_for_diffusers(
    folder: Path, component: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Write the same adapters as ``load_lora_weights`` of a pipeline reads them."""
    named = {f"{component}.{name.removeprefix(PREFIX)}": t for name, t in tensors.items()}
    told = {f"{component}.{name}": settings[name] for name in _OF_DIFFUSERS}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
    save_file(named, folder / FOR_DIFFUSERS, metadata=metadata)
    (folder / FOR_DIFFUSERS).chmod(folder.stat().st_mode & 0o666)


def _settings(lora: LoraSection) -> dict[str, Any]:
    alpha = lora.alpha
    return {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": lora.use_rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _is_language_model(family: AdapterPlaces, folder: str) -> bool:
    return [part for part, place in family.folders.items() if place == folder] == ["llm"]


def _module(family: AdapterPlaces, name: str) -> str:
    """The module that holds a weight of the mapping table."""
    return family.module_path(name).removesuffix(".weight")


def target_modules(modules: Sequence[str], others: Collection[str]) -> list[str] | str:
    """Return the setting with which PEFT selects exactly these modules: ends of their names where
    no other module has these, else a regular expression for whole names.

    Args:
        others: modules with weights that it must not select.
    """
    ends = sorted({module.rpartition(".")[2] for module in modules})
    # A number would select layers.
    is_telling = not any(end.isdigit() for end in ends)
    if is_telling and not any(module.rpartition(".")[2] in ends for module in others):
        return ends
    layers: dict[tuple[str, str], list[str]] = {}
    alternatives = []
    for module in modules:
        match = re.match(r"(.*?)\.(\d+)\.(.*)", module)
        if match is None:
            alternatives.append(re.escape(module))
        else:
            layers.setdefault((match[1], match[3]), []).append(match[2])
    inner: dict[tuple[str, str], list[str]] = {}
    for (head, tail), numbers in layers.items():
        inner.setdefault((head, "|".join(numbers)), []).append(re.escape(tail))
    for (head, which), tails in inner.items():
        alternatives.append(rf"{re.escape(head)}\.({which})\.({'|'.join(tails)})")
    return "|".join(alternatives)


class PeftFolder:
    """Adapters on disk, of PEFT or of :func:`write_adapters`.

    Args:
        family: the family of the model to which the adapters belong.

    Raises:
        UserError: there are none, or of a kind that is not supported.
    """

    def __init__(self, folder: str | Path, family: AdapterPlaces) -> None:
        self._folder = folder
        self._family = family
        self._scales: dict[str, float] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        for sub in dict.fromkeys(family.folders.values()):
            place = Path(folder) / sub
            if (place / SETTINGS).is_file():
                self._scales[sub] = _scale(Settings.of(place / SETTINGS))
                self._tensors[sub] = _tensors(place / WEIGHTS)
        if not self._tensors:
            raise UserError(f"{folder} holds no {SETTINGS}: is this the folder of an adapter?")

    def check(self, names: Collection[str]) -> None:
        """Raises :class:`UserError` for a tensor that belongs to none of these weights.

        Args:
            names: the names of the mapping table.
        """
        for sub, tensors in self._tensors.items():
            modules = {_module(self._family, n) for n in names if self._family.locate(n)[0] == sub}
            known = {f"{PREFIX}{module}.lora_{m}.weight" for module in modules for m in "AB"}
            for name, tensor in tensors.items():
                if name not in known or tensor.dim() != 2:
                    raise UserError(
                        f"{self._folder}: the adapter holds {brief(name)} {list(tensor.shape)}, "
                        "which is no part of a linear layer of the model"
                    )

    def adapter(self, name: str) -> Pair | None:
        """A and B beside a weight of the mapping table; None where it has none."""
        tensors = self._tensors.get(self._family.locate(name)[0], {})
        stem = f"{PREFIX}{_module(self._family, name)}"
        if f"{stem}.lora_A.weight" not in tensors:
            return None
        return tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the mapping table with its adapter."""
        pair = self.adapter(name)
        if pair is None:
            return weight
        (rank, inner), (outer, rank_too) = (tensor.shape for tensor in pair)
        if rank != rank_too or weight.shape != (outer, inner):
            raise UserError(
                f"{self._folder}: the adapter of {name}, {[list(t.shape) for t in pair]}, does not "
                f"fit its weight {list(weight.shape)}"
            )
        return merged_weight(weight, *pair, self._scales[self._family.locate(name)[0]])


def _scale(settings: Settings) -> float:
    for name, values in _ONLY.items():
        if settings.values.get(name) not in values:
            raise settings.wrong(name, f"not supported, only {values[-1]}")
    for name in ("r", "lora_alpha"):
        if name not in settings:
            raise UserError(f"{settings.path} lacks {name}")
    rank, alpha = settings.whole("r", 1, most=WIDEST), settings.number("lora_alpha", 1)
    is_rooted = settings.flag("use_rslora", False) if "use_rslora" in settings else False
    return lora_scale(rank, alpha, is_rooted)


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {brief(error)}") from None
    for name in tensors:
        mine, other = (".lora_A.", ".lora_B.")[:: 1 if ".lora_A." in name else -1]
        if name.replace(mine, other) not in tensors:
            raise UserError(f"{path} lacks {brief(name.replace(mine, other))}")
    return tensors
