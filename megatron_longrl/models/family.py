"""The interface of a model family; every family is a folder beside this file.

A family's ``family.py`` holds its :class:`Family` as ``FAMILY``; a plugin brings its own by
:func:`register_family`. Nothing else knows families by name: a checkpoint's family is read from its
``config.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.family import FAMILY_SECTIONS, FamilySection
from megatron_longrl.models import BUILT_IN
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.registry import Registry, instance_of

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_longrl.config import ModelConfig
    from megatron_longrl.data.tokenizer import Tokenizer
    from megatron_longrl.media.layout import MediaLayout
    from megatron_longrl.models.hf_settings import HfConfig
    from megatron_longrl.models.media_encoder import FamilyEncoder
    from megatron_longrl.models.param_mapping import MappingRegistry
    from megatron_longrl.models.sizes import Sized


def _nothing(config: ModelConfig) -> dict[str, Tensor]:
    return {}


def _as_stored(name: str) -> str:
    return name.partition("/")[2]


@dataclass(frozen=True)
class HfExport:
    """A Hugging Face folder that is written, beside the model that is in it."""

    dtype: str
    """``float32`` or ``bfloat16``, of the weights."""
    written: Collection[str] = ()
    """Names of the mapping table of the tensors that are written."""
    video_frames: int | None = None
    """The most frames of a video that the run has read."""


@dataclass(frozen=True)
class Family:
    """The functions and names of one model family.

    The names of a mapping table begin with a part of the model (``llm``, ``vision_tower``,
    ``mm_projector``) and a slash; parts lie in folders of a checkpoint.
    """

    model_types: tuple[str, ...]
    """``model_type`` of the checkpoints' top ``config.json``."""
    folders: Mapping[str, str]
    """Part -> folder of a checkpoint that holds its weights, ``""`` for the top one."""
    mapping_table: Callable[[ModelConfig], MappingRegistry]
    """Table of the correspondence between parameters and tensors."""
    table_name: Callable[[str, str], str]
    """(folder, name of a tensor in its files) -> name in the table, for old and new key styles."""
    config_from_hf: Callable[[HfConfig], dict[str, Any]]
    """Fields of the model section that a checkpoint determines."""
    hf_configs: Callable[[ModelConfig, HfExport], dict[str, dict[str, Any]]]
    """The JSON files of an export by path."""
    sizes: Callable[[Mapping[str, Any]], list[Sized]]
    """Fields of the configuration -> tensors whose shapes give its sizes."""
    encoders: Mapping[str, FamilyEncoder] = field(default_factory=dict)
    """Name of a module -> encoder; none for a family that reads text only. Checkpoints and the
    mapping table know the module by its name."""
    build_layout: Callable[[FamilySection, Tokenizer], MediaLayout] | None = None
    """Layout of media in a prompt; None for a family that reads text only."""
    tokenizer_folder: str = ""
    """Folder of a checkpoint with the tokenizer's files."""
    completion: Callable[[ModelConfig], dict[str, Tensor]] = _nothing
    """Tensors that Hugging Face's classes have and the model has not, by names of the table."""
    embeddings: tuple[str, str] = ("llm/model.embed_tokens.weight", "llm/lm_head.weight")
    """Names of the table of the word embeddings and of the output layer, which may be tied."""
    served_part: str = "llm"
    """The part of the model that a rollout engine gets."""
    served_name: Callable[[str], str] = _as_stored
    """Name of the table -> name of the weight as the engine loads it."""
    module_path: Callable[[str], str] = _as_stored
    """Name of the table -> name in transformers' class of the folder, where files have another."""

    hf_class: str = "AutoModelForCausalLM"
    """Name of transformers' class of such a checkpoint."""
    hf_settings: str = ""
    """Attribute of the checkpoint's settings that holds those of this class, where it is a part."""
    reference: str = "megatron_longrl.models.hf_reference:text_reference"
    """``module:name`` of a :data:`~megatron_longrl.models.hf_reference.Reference`, by which
    ``longrl verify`` compares the model with transformers'."""

    def locate(self, name: str) -> tuple[str, str]:
        """Name of the table -> (folder, name of the tensor in its files)."""
        part, _, stored = name.partition("/")
        return self.folders[part], stored


FAMILIES: Registry[Family] = Registry(
    "model family",
    "megatron_longrl.families",
    {name: f"megatron_longrl.models.{name}.family:FAMILY" for name in BUILT_IN},
    problem=instance_of(Family),
)
"""All families of language models by name."""


def register_family(name: str, family: Family, section: type[FamilySection]) -> None:
    """Let ``--model-family`` be ``name``.

    Args:
        section: the family's own fields of the configuration.

    Raises:
        UserError: there is a family of this name.
    """
    FAMILIES.register(name, family)
    FAMILY_SECTIONS.register(name, section)


def find_family(name: str) -> Family:
    """The family of ``--model-family``.

    Raises:
        UserError: there is none of this name.
    """
    return FAMILIES.find(name)


def family_of(settings: Mapping[str, Any], path: Path) -> str:
    """Return the family that a checkpoint's ``config.json`` names.

    Args:
        path: the path of the file, for the message.

    Raises:
        UserError: there is none of this ``model_type``.
    """
    kind = settings.get("model_type")
    known = {}
    for name, family in FAMILIES.usable().items():
        for model_type in family.model_types:
            known[model_type] = name
    if not isinstance(kind, str) or kind not in known:
        raise Settings(settings, path).wrong(
            "model_type", f"not supported, only {', '.join(sorted(known))}"
        )
    return known[kind]
