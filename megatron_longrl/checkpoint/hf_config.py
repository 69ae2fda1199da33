"""Translation between the run's configuration and the ``config.json`` files of a VILA folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.checkpoint.hf import ARCHITECTURES, VilaFolder, read_json
from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.config import Config

SUPPORTED = {
    "llm": {"hidden_act": "silu", "use_sliding_window": False},
    "vision_tower": {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3},
}
"""Settings of which one value is implemented; it is also the default where none is written."""


def config_from_hf(folder: str | Path) -> dict[str, Any]:
    """Fields of :class:`~megatron_longrl.config.Config` that a VILA folder determines.

    Args:
        folder: with ``config.json``, ``llm/``, ``vision_tower/`` and ``mm_projector/``.

    Returns:
        The fields of the model section, and tokenizer_type and tokenizer_model where ``llm/`` holds
        a tokenizer.

    Raises:
        UserError: naming the file and the setting that is missing or not supported.
    """
    source = VilaFolder(folder)
    return {
        "model_family": "vila",
        **_language_fields(source),
        **_vision_fields(source),
        **_projector_fields(source),
        **_tokenizer_fields(source.folder / "llm"),
    }


def _language_fields(source: VilaFolder) -> dict[str, Any]:
    path, llm = _settings(source, "llm")
    heads = _required(llm, path, "num_attention_heads")
    hidden = _required(llm, path, "hidden_size")
    return {
        "num_layers": _required(llm, path, "num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": _required(llm, path, "intermediate_size"),
        "num_attention_heads": heads,
        "num_query_groups": llm.get("num_key_value_heads") or heads,
        "kv_channels": llm.get("head_dim") or hidden // heads,
        "vocab_size": _required(llm, path, "vocab_size"),
        "max_position_embeddings": llm.get("max_position_embeddings", 32768),
        "norm_epsilon": llm.get("rms_norm_eps", 1e-6),
        "rotary_base": _rotary_base(llm, path),
        "add_qkv_bias": True,
        "untie_embeddings_and_output_weights": not llm.get("tie_word_embeddings", False),
    }


def _vision_fields(source: VilaFolder) -> dict[str, Any]:
    path, tower = _settings(source, "vision_tower")
    layer = source.config.get("mm_vision_select_layer")
    if not isinstance(layer, int):
        raise UserError(f"{source.folder / 'config.json'} lacks the number mm_vision_select_layer")
    fields = {
        "vision_image_size": _required(tower, path, "image_size"),
        "vision_patch_size": _required(tower, path, "patch_size"),
        "vision_hidden_size": _required(tower, path, "hidden_size"),
        "vision_num_layers": _required(tower, path, "num_hidden_layers"),
        "vision_num_attention_heads": _required(tower, path, "num_attention_heads"),
        "vision_ffn_hidden_size": _required(tower, path, "intermediate_size"),
        "vision_norm_epsilon": tower.get("layer_norm_eps", 1e-6),
        "vision_feature_layer": layer,
    }
    processor = source.folder / "vision_tower" / "preprocessor_config.json"
    if processor.exists():
        settings = read_json(processor)
        for ours in ("image_mean", "image_std"):
            channels = settings.get(ours, [0.5, 0.5, 0.5])
            values = channels if isinstance(channels, list) else [channels]
            if len(set(values)) != 1:
                raise UserError(f"{processor}: {ours} {values} differs per channel: not supported")
            fields[ours] = values[0]
    return fields


def _projector_fields(source: VilaFolder) -> dict[str, Any]:
    kind = source.part_configs["mm_projector"].get("mm_projector_type")
    if kind != "mlp_downsample":
        path = source.folder / "mm_projector" / "config.json"
        raise UserError(f"{path}: mm_projector_type {kind} is not supported, only mlp_downsample")
    return {"projector_type": kind}


def _tokenizer_fields(llm: Path) -> dict[str, Any]:
    if (llm / "tokenizer.json").exists() or (llm / "vocab.json").exists():
        return {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(llm)}
    if (llm / "tokenizer.model").exists():
        model = str(llm / "tokenizer.model")
        return {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": model}
    return {}


def _settings(source: VilaFolder, part: str) -> tuple[Path, dict[str, Any]]:
    """A part's config.json, of which the settings that have one implementation are checked."""
    path = source.folder / part / "config.json"
    settings = source.part_configs[part]
    for name, only in SUPPORTED[part].items():
        if settings.get(name, only) != only:
            raise UserError(f"{path}: {name} {settings[name]} is not supported, only {only}")
    return path, settings


def _required(settings: dict[str, Any], path: Path, name: str) -> Any:
    if name not in settings:
        raise UserError(f"{path} lacks {name}")
    return settings[name]


def _rotary_base(llm: dict[str, Any], path: Path) -> float:
    """Old files hold rope_theta and rope_scaling, newer ones rope_parameters."""
    settings = [llm.get("rope_scaling") or {}, llm.get("rope_parameters") or {}]
    for rope in settings:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UserError(f"{path}: rotary embedding of type {kind} is not supported")
    return float(llm.get("rope_theta") or settings[1].get("rope_theta") or 10000.0)


def hf_configs(config: Config, dtype: str, pooling_head: bool) -> dict[str, dict[str, Any]]:
    """The JSON files of an export, by path.

    Args:
        dtype: ``float32`` or ``bfloat16``, of the weights that are written.
        pooling_head: whether the tower's weights include SigLIP's pooling head.

    Raises:
        UserError: the model is not a Qwen2.
    """
    if not config.add_qkv_bias:
        raise UserError("--add-qkv-bias false: Qwen2ForCausalLM always has these biases, no export")
    llm = {
        "architectures": [ARCHITECTURES["llm"]],
        "model_type": "qwen2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_query_groups,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary_base,
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
        "attention_dropout": 0.0,
        "initializer_range": config.init_method_std,
        "torch_dtype": dtype,
        **SUPPORTED["llm"],
    }
    if config.kv_channels != config.hidden_size // config.num_attention_heads:
        llm["head_dim"] = config.kv_channels
    tower = {
        "architectures": [ARCHITECTURES["vision_tower"]],
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
        **SUPPORTED["vision_tower"],
    }
    projector = {
        "architectures": ["MultimodalProjector"],
        "model_type": "v2l_projector",
        "mm_projector_type": config.projector_type,
        "torch_dtype": dtype,
    }
    top = {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "llm_cfg": llm,
        "vision_tower_cfg": tower,
        "mm_projector_cfg": projector,
        "mm_projector": config.projector_type,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "cls_patch",
        "mm_hidden_size": config.vision_hidden_size,
        "hidden_size": config.hidden_size,
        "image_aspect_ratio": "resize",
        "num_video_frames": config.video_frames,
        "model_dtype": f"torch.{dtype}",
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
        "image_mean": [config.image_mean] * 3,
        "image_std": [config.image_std] * 3,
    }
    return {
        "config.json": top,
        "llm/config.json": llm,
        "vision_tower/config.json": tower,
        "vision_tower/preprocessor_config.json": processor,
        "mm_projector/config.json": projector,
    }
