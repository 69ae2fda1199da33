"""The family's entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longrl.models.family import Family
from megatron_longrl.models.media_encoder import FamilyEncoder, vision_encoder
from megatron_longrl.models.qwen2_5_omni.audio import OmniAudioEncoder
from megatron_longrl.models.qwen2_5_omni.hf_config import THINKER, WHOLE, fields, hf_configs
from megatron_longrl.models.qwen2_5_omni.layout import OmniLayout
from megatron_longrl.models.qwen2_5_omni.mapping import completion, sizes, table, table_name
from megatron_longrl.models.qwen_vl.encoder import QwenVisionEncoder

if TYPE_CHECKING:
    from megatron_longrl.config.data import DataSection


def _served_name(name: str) -> str:
    """Return the name under which an engine's Qwen2 loads a weight."""
    return name.partition("/")[2].removeprefix("thinker.")


def _units_at_a_time(data: DataSection, preprocess: Any) -> int:
    return data.encoder_chunk_frames


_PARTS = ("llm", "vision_tower", "mm_projector", "audio_tower", "audio_marks")

FAMILY = Family(
    model_types=(WHOLE, THINKER),
    folders=dict.fromkeys((*_PARTS, "talker", "token2wav"), ""),
    mapping_table=table,
    table_name=table_name,
    config_from_hf=fields,
    hf_configs=hf_configs,
    sizes=sizes,
    encoders={
        "encoder": vision_encoder(QwenVisionEncoder),
        "audio_encoder": FamilyEncoder(
            modalities=("audio",),
            build=OmniAudioEncoder,
            width=lambda config: config.model.hidden_size,
            chunk_units=_units_at_a_time,
        ),
    },
    build_layout=OmniLayout,
    hf_class="Qwen2_5OmniThinkerForConditionalGeneration",
    hf_settings="thinker_config",
    reference="megatron_longrl.models.qwen2_5_omni.reference:reference",
    completion=completion,
    served_name=_served_name,
)
