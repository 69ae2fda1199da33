"""Translation between the run's configuration and the ``config.json`` files of a VILA folder.

A folder has a top ``config.json`` and three folders, each with its own: ``llm/``, ``vision_tower/``
(SiglipVisionModel) and ``mm_projector/``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longrl.config.sizes import MOST_HEADS, MOST_LAYERS, WIDEST
from megatron_longrl.errors import UserError, brief
from megatron_longrl.models.family import HfExport
from megatron_longrl.models.hf_processors import normalisation, processor_settings
from megatron_longrl.models.hf_settings import LONGEST, HfConfig, Settings
from megatron_longrl.models.text.hf_config import language_fields, language_settings
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.picture_settings import (
    picture_fields,
    picture_settings,
    projector_kind,
)
from megatron_longrl.models.vila.projector_kinds import widths

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

_TOWER = "SiglipVisionModel"
_TOWER_SETTINGS = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3}
"""Settings of which one value is implemented; it is also the default where none is written."""


def config_from_hf(source: HfConfig) -> dict[str, Any]:
    """Fields of the model section that a VILA folder determines.

    Raises:
        UserError: naming the file and the setting that is missing or not supported.
    """
    return {
        **language_fields(Settings.of(source.folder / "llm" / "config.json")),
        **_vision_fields(source),
        **_projector_fields(source),
        **picture_fields(source.settings),
    }


def _vision_fields(source: HfConfig) -> dict[str, Any]:
    tower = Settings.of(source.folder / "vision_tower" / "config.json")
    architectures = tower.values.get("architectures") or ["nothing"]
    if not isinstance(architectures, list) or architectures[0] != _TOWER:
        raise tower.wrong("architectures", f"not supported, only {_TOWER}")
    tower.only(_TOWER_SETTINGS)
    heads = tower.whole("num_attention_heads", 12, most=MOST_HEADS)
    hidden = tower.whole("hidden_size", 768, most=WIDEST)
    if hidden % heads:
        raise tower.wrong("hidden_size", f"no multiple of num_attention_heads {heads}")
    side, patch = tower.whole("image_size", 224, most=WIDEST), tower.whole("patch_size", 16)
    if patch > side:
        raise tower.wrong("patch_size", f"more than image_size {side}")
    layers = tower.whole("num_hidden_layers", 12, most=MOST_LAYERS)
    fields = {
        "vision_image_size": side,
        "vision_patch_size": patch,
        "vision_hidden_size": hidden,
        "vision_num_layers": layers,
        "vision_num_attention_heads": heads,
        "vision_ffn_hidden_size": tower.whole("intermediate_size", 3072, most=WIDEST),
        "vision_norm_epsilon": tower.number("layer_norm_eps", 1e-6),
        "vision_feature_layer": _feature_layer(source.settings, layers),
    }
    processor = processor_settings(source.folder / "vision_tower", "image_processor")
    return fields if processor is None else {**fields, **normalisation(processor)}


def _feature_layer(top: Settings, layers: int) -> int:
    """The hidden state that is selected: some layer's, not the embeddings before the first."""
    name = "mm_vision_select_layer"
    if name not in top:
        raise UserError(f"{top.path} lacks the number {name}")
    layer = top.whole(name, -2, least=-LONGEST)
    if layer == 0 or not -layers <= layer <= layers:
        raise top.wrong(
            name,
            f"no layer of the vision tower with {layers}: give one from 1 to {layers}, or from "
            f"-1 to -{layers}",
        )
    return layer


def _projector_fields(source: HfConfig) -> dict[str, Any]:
    settings = Settings.of(source.folder / "mm_projector" / "config.json")
    kind = settings.text("mm_projector_type", "nothing")
    try:
        widths(kind, 1, 1)
    except UserError as error:
        raise settings.wrong("mm_projector_type", f"not supported: {brief(error)}") from None
    return {"projector_type": projector_kind(kind, source.settings.values)}


def hf_configs(config: ModelConfig, export: HfExport) -> dict[str, dict[str, Any]]:
    """The JSON files of an export, by path. SigLIP's pooling head may be among its tensors.

    Raises:
        UserError: transformers has no such language model.
    """
    family, dtype = config.family_as(VilaSection), export.dtype
    llm = language_settings(config.model, config.rotary, dtype)
    pooling_head = any(
        name.startswith("vision_tower/vision_model.head.") for name in export.written
    )
    tower = {
        "architectures": [_TOWER],
        "model_type": "siglip_vision_model",
        "hidden_size": family.vision_hidden_size,
        "image_size": family.vision_image_size,
        "patch_size": family.vision_patch_size,
        "num_hidden_layers": family.vision_num_layers,
        "num_attention_heads": family.vision_num_attention_heads,
        "intermediate_size": family.vision_ffn_hidden_size,
        "layer_norm_eps": family.vision_norm_epsilon,
        "attention_dropout": 0.0,
        "vision_use_head": pooling_head,
        "torch_dtype": dtype,
        **_TOWER_SETTINGS,
    }
    projector = {
        "architectures": ["MultimodalProjector"],
        "model_type": "v2l_projector",
        "mm_projector_type": family.projector_type,
        "torch_dtype": dtype,
    }
    top: dict[str, Any] = {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "llm_cfg": llm,
        "vision_tower_cfg": tower,
        "mm_projector_cfg": projector,
        "mm_projector": family.projector_type,
        "mm_vision_select_layer": family.vision_feature_layer,
        "hidden_size": config.model.hidden_size,
        "num_video_frames": export.video_frames,
        "model_dtype": f"torch.{dtype}",
        **picture_settings(family),
    }
    side = family.vision_image_size
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(family.image_mean),
        "image_std": list(family.image_std),
    }
    return {
        "config.json": top,
        "llm/config.json": llm,
        "vision_tower/config.json": tower,
        "vision_tower/preprocessor_config.json": processor,
        "mm_projector/config.json": projector,
    }
