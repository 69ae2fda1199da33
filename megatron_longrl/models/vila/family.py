"""The family's entry."""

from __future__ import annotations

from megatron_longrl.models.family import Family
from megatron_longrl.models.media_encoder import vision_encoder
from megatron_longrl.models.vila.encoder import VisionEncoder
from megatron_longrl.models.vila.hf_config import config_from_hf, hf_configs
from megatron_longrl.models.vila.layout import VilaLayout
from megatron_longrl.models.vila.mapping import mapping_table, sizes
from megatron_longrl.models.vila.unused_layers import identity_layers

_PREFIXES = {"vision_tower": "vision_model."}
"""Prefixes of all tensors' names in a folder, which newer transformers leave out."""


def _table_name(folder: str, stored: str) -> str:
    prefix = _PREFIXES.get(folder, "")
    return f"{folder}/{stored}" if stored.startswith(prefix) else f"{folder}/{prefix}{stored}"


def _module_path(name: str) -> str:
    folder, _, stored = name.partition("/")
    return stored.removeprefix(_PREFIXES.get(folder, ""))


FAMILY = Family(
    model_types=("llava_llama", "vila"),
    folders={part: part for part in ("llm", "vision_tower", "mm_projector")},
    mapping_table=mapping_table,
    table_name=_table_name,
    config_from_hf=config_from_hf,
    hf_configs=hf_configs,
    sizes=sizes,
    encoders={"encoder": vision_encoder(VisionEncoder)},
    build_layout=VilaLayout,
    tokenizer_folder="llm",
    completion=identity_layers,
    module_path=_module_path,
    reference="megatron_longrl.models.vila.reference:reference",
)
