"""A family with a second modality: VILA, and beside its vision tower an encoder of signals.

It is brought by

    longrl train-sft --plugin tests.extensions.modality.vila_signal --model-family vila_signal ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_longrl.config import ModelConfig
from megatron_longrl.config.family import FamilySection
from megatron_longrl.config.section import Architecture, KnownTo, PositiveInt, Unit
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.media.layout import PlacementContext
from megatron_longrl.media.modalities.visual.layout import VisualPlacement
from megatron_longrl.media.modality import MediaFile
from megatron_longrl.models.family import HfExport, register_family
from megatron_longrl.models.hf_settings import HfConfig, Settings
from megatron_longrl.models.media_encoder import FamilyEncoder
from megatron_longrl.models.param_mapping import DirectMapping, MappingRegistry
from megatron_longrl.models.sizes import Sized
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.family import FAMILY as VILA
from megatron_longrl.models.vila.layout import VilaLayout
from megatron_longrl.models.vila.siglip import vision_transformer_config
from megatron_longrl.parallel.encoder_groups import EncoderGroups
from megatron_longrl.platforms import platform
from tests.extensions.modality.signal import SAMPLES_PER_TOKEN, SignalPlacement

NAME = "signal_encoder"


class VilaSignalSection(VilaSection):
    """vila_signal: VILA's fields, and those of the encoder of signals"""

    parts: ClassVar[Mapping[str, str]] = MappingProxyType({**VilaSection.parts, NAME: NAME})

    signal_hidden_size: Annotated[PositiveInt, Unit("channels"), Architecture(most=4096)] = 8
    """Width of the encoder of signals."""

    freeze_signal_encoder: Annotated[bool, KnownTo("sft", "rl")] = False
    """Do not train the encoder of signals."""


class SignalEncoder(MegatronModule):
    """Units of a series -> embeddings of the language model."""

    def __init__(self, config: ModelConfig, groups: EncoderGroups) -> None:
        super().__init__(config=vision_transformer_config(config))
        width = config.family_as(VilaSignalSection).signal_hidden_size
        options: dict[str, Any] = {"dtype": config.training.params_dtype, "device": platform.device}
        self.inner = torch.nn.Linear(SAMPLES_PER_TOKEN, width, **options)
        self.outer = torch.nn.Linear(width, config.model.hidden_size, **options)

    def forward(self, values: Tensor, tokens: Tensor, preprocess: str) -> Tensor:
        """[units, samples], and the tokens of each unit, long [units] -> [tokens, h]."""
        pieces = values.unflatten(1, (-1, SAMPLES_PER_TOKEN)).to(self.inner.weight.dtype)
        is_there = torch.arange(pieces.shape[1], device=tokens.device) < tokens[:, None]
        return self.outer(torch.tanh(self.inner(pieces[is_there])))


class VilaSignalLayout(VilaLayout):
    """VILA's, and signals as lines of their own."""

    def __init__(self, family: FamilySection, tokenizer: Tokenizer) -> None:
        super().__init__(family, tokenizer)
        self._signal_id = tokenizer.media_id

    def placement(  # type: ignore[override]
        self, medium: MediaFile, context: PlacementContext
    ) -> VisualPlacement | SignalPlacement:
        if medium.modality == "signal":
            return SignalPlacement(medium.path, self._signal_id)
        return super().placement(medium, context)


def _table(config: ModelConfig) -> MappingRegistry:
    table = VILA.mapping_table(config)
    names = [f"{layer}.{kind}" for layer in ("inner", "outer") for kind in ("weight", "bias")]
    rows = [DirectMapping(f"{NAME}.{name}", (f"{NAME}/{name}",), replicated=True) for name in names]
    return replace(table, entries=(*table.entries, *rows))


def _table_name(folder: str, stored: str) -> str:
    return f"{NAME}/{stored}" if folder == NAME else VILA.table_name(folder, stored)


def _fields(source: HfConfig) -> dict[str, Any]:
    settings = Settings.of(source.folder / NAME / "config.json")
    width = settings.whole("hidden_size", 8, most=4096)
    return {**VILA.config_from_hf(source), "signal_hidden_size": width}


def _hf_configs(config: ModelConfig, export: HfExport) -> dict[str, dict[str, Any]]:
    files = VILA.hf_configs(config, export)
    width = config.family_as(VilaSignalSection).signal_hidden_size
    return {
        **files,
        "config.json": {**files["config.json"], "model_type": "vila_signal"},
        f"{NAME}/config.json": {"model_type": NAME, "hidden_size": width},
    }


def _sizes(fields: Mapping[str, Any]) -> list[Sized]:
    inner = Sized(f"{NAME}/inner.bias", (("hidden_size", fields["signal_hidden_size"]),))
    return [*VILA.sizes(fields), inner]


register_family(
    "vila_signal",
    replace(
        VILA,
        model_types=("vila_signal",),
        folders={**VILA.folders, NAME: NAME},
        mapping_table=_table,
        table_name=_table_name,
        config_from_hf=_fields,
        hf_configs=_hf_configs,
        sizes=_sizes,
        encoders={
            **VILA.encoders,
            NAME: FamilyEncoder(
                modalities=("signal",),
                build=SignalEncoder,
                width=lambda config: config.model.hidden_size,
                chunk_units=lambda data, preprocess: 3,
            ),
        },
        build_layout=VilaSignalLayout,
    ),
    VilaSignalSection,
)
