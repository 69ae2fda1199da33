"""A family of one language model and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longrl.models.family import Family, HfExport
from megatron_longrl.models.param_mapping import MappingRegistry
from megatron_longrl.models.text.hf_config import language_fields, language_settings
from megatron_longrl.models.text.mapping import language_model, language_sizes

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.models.hf_settings import HfConfig


def text_family(model_type: str) -> Family:
    """The family of a kind of language model."""
    return Family(
        model_types=(model_type,),
        folders={"llm": ""},
        mapping_table=_table,
        table_name=lambda folder, stored: f"llm/{stored}",
        config_from_hf=_fields,
        hf_configs=_hf_configs,
        sizes=language_sizes,
    )


def _table(config: ModelConfig) -> MappingRegistry:
    return MappingRegistry(
        entries=language_model(config),
        layers={"llm": config.model.num_layers},
        ignored=("rotary_emb.inv_freq",),
    )


def _fields(source: HfConfig) -> dict[str, Any]:
    return language_fields(source.settings)


def _hf_configs(config: ModelConfig, export: HfExport) -> dict[str, dict[str, Any]]:
    return {"config.json": language_settings(config.model, config.rotary, export.dtype)}
