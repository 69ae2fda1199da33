"""Translation between the run's configuration and the ``config.json`` files of a VILA folder.

A folder has a top ``config.json`` and three folders, each with its own: ``llm/``, ``vision_tower/``
(SiglipVisionModel) and ``mm_projector/``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from megatron_longrl.checkpoint.hf import HfFolder, read_json
from megatron_longrl.errors import UserError
from megatron_longrl.models.text.hf_config import (
    check_settings,
    language_fields,
    language_settings,
    required,
)
from megatron_longrl.models.vila.picture_settings import (
    picture_fields,
    picture_settings,
    projector_kind,
)
from megatron_longrl.models.vila.projector_kinds import widths

if TYPE_CHECKING:
    from megatron_longrl.config import Config

_TOWER = "SiglipVisionModel"
_TOWER_SETTINGS = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3}
"""Settings of which one value is implemented; it is also the default where none is written."""


def config_from_hf(source: HfFolder) -> dict[str, Any]:
    """Fields of the model section that a VILA folder determines.

    Raises:
        UserError: naming the file and the setting that is missing or not supported.
    """
    llm = source.folder / "llm" / "config.json"
    return {
        **language_fields(read_json(llm), llm),
        **_vision_fields(source),
        **_projector_fields(source),
        **picture_fields(source.config, source.folder / "config.json"),
    }


def _vision_fields(source: HfFolder) -> dict[str, Any]:
    path = source.folder / "vision_tower" / "config.json"
    tower = read_json(path)
    found = (tower.get("architectures") or ["nothing"])[0]
    if found != _TOWER:
        raise UserError(f"{path} says architecture {found}, only {_TOWER} is supported here")
    check_settings(tower, path, _TOWER_SETTINGS)
    layer = source.config.get("mm_vision_select_layer")
    if not isinstance(layer, int):
        raise UserError(f"{source.folder / 'config.json'} lacks the number mm_vision_select_layer")
    fields = {
        "vision_image_size": required(tower, path, "image_size"),
        "vision_patch_size": required(tower, path, "patch_size"),
        "vision_hidden_size": required(tower, path, "hidden_size"),
        "vision_num_layers": required(tower, path, "num_hidden_layers"),
        "vision_num_attention_heads": required(tower, path, "num_attention_heads"),
        "vision_ffn_hidden_size": required(tower, path, "intermediate_size"),
        "vision_norm_epsilon": tower.get("layer_norm_eps", 1e-6),
        "vision_feature_layer": layer,
    }
    processor = source.folder / "vision_tower" / "preprocessor_config.json"
    if processor.exists():
        settings = read_json(processor)
        for ours in ("image_mean", "image_std"):
            if ours in settings:
                fields[ours] = settings[ours]
    return fields


def _projector_fields(source: HfFolder) -> dict[str, Any]:
    path = source.folder / "mm_projector" / "config.json"
    kind = str(read_json(path).get("mm_projector_type"))
    try:
        widths(kind, 1, 1)
    except UserError as error:
        raise UserError(f"{path}: mm_projector_type {kind}: {error}") from None
    return {"projector_type": projector_kind(kind, source.config)}


def hf_configs(
    config: Config, dtype: str, written: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """The JSON files of an export, by path.

    Args:
        dtype: ``float32`` or ``bfloat16``, of the weights that are written.
        written: names of the weights. SigLIP's pooling head may be among them.

    Raises:
        UserError: transformers has no such language model.
    """
    llm = language_settings(config, dtype)
    pooling_head = any(name.startswith("vision_tower/vision_model.head.") for name in written)
    tower = {
        "architectures": [_TOWER],
        "model_type": "siglip_vision_model",
        "hidden_size": config.vision_hidden_size,
        "image_size": config.vision_image_size,
        "patch_size": config.vision_patch_size,
        "num_hidden_layers": config.vision_num_layers,
        "num_attention_heads": config.vision_num_attention_heads,
        "intermediate_size": config.vision_ffn_hidden_size,
        "layer_norm_eps": config.vision_norm_epsilon,
        "attention_dropout": 0.0,
        "vision_use_head": pooling_head,
        "torch_dtype": dtype,
        **_TOWER_SETTINGS,
    }
    projector = {
        "architectures": ["MultimodalProjector"],
        "model_type": "v2l_projector",
        "mm_projector_type": config.projector_type,
        "torch_dtype": dtype,
    }
    top: dict[str, Any] = {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "llm_cfg": llm,
        "vision_tower_cfg": tower,
        "mm_projector_cfg": projector,
        "mm_projector": config.projector_type,
        "mm_vision_select_layer": config.vision_feature_layer,
        "hidden_size": config.hidden_size,
        "num_video_frames": config.video_frames,
        "model_dtype": f"torch.{dtype}",
        **picture_settings(config),
    }
    side = config.vision_image_size
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }
    return {
        "config.json": top,
        "llm/config.json": llm,
        "vision_tower/config.json": tower,
        "vision_tower/preprocessor_config.json": processor,
        "mm_projector/config.json": projector,
    }
