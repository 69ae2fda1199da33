"""VILA's weights on both sides: SigLIP tower, projector, and a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.models.param_mapping import (
    QKV,
    ColumnParallel,
    DirectMapping,
    MappingRegistry,
    RowParallel,
    TensorMapping,
)
from megatron_longrl.models.sizes import Sized
from megatron_longrl.models.text.mapping import language_model, language_sizes
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.projector_kinds import parameter_names

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.parallel import ParallelSection


def mapping_table(config: ModelConfig) -> MappingRegistry:
    """All parameters of a VILA model.

    Raises:
        ValueError: the vocabulary's size is not known yet.
    """
    family = config.family_as(VilaSection)
    return MappingRegistry(
        entries=(
            *language_model(config),
            *siglip(family, config.parallel),
            *projector(family),
        ),
        layers={"llm": config.model.num_layers, "vision_tower": family.layers_to_run},
        ignored=("rotary_emb.inv_freq", "embeddings.position_ids"),
        carried=("vision_tower",),
    )


def sizes(fields: Mapping[str, Any]) -> list[Sized]:
    """Tensors whose shapes give the sizes of a VILA model.

    Args:
        fields: the fields of the configuration.
    """
    theirs = "vision_tower/vision_model."
    hidden = ("hidden_size", fields["vision_hidden_size"])
    patch = ("patch_size", fields["vision_patch_size"])
    places = (fields["vision_image_size"] // fields["vision_patch_size"]) ** 2
    embeddings = f"{theirs}embeddings."
    inner = ("intermediate_size", fields["vision_ffn_hidden_size"])
    layer = fields["vision_feature_layer"]
    layers = fields["vision_num_layers"]
    run = layer if layer >= 0 else layers + 1 + layer
    last = f"{theirs}encoder.layers.{run - 1}.layer_norm1.weight"
    return [
        *language_sizes(fields),
        Sized(f"{embeddings}patch_embedding.weight", (hidden, ("num_channels", 3), patch, patch)),
        Sized(
            f"{embeddings}position_embedding.weight",
            (("(image_size / patch_size)^2", places), hidden),
        ),
        Sized(f"{theirs}encoder.layers.0.mlp.fc1.weight", (inner, hidden)),
        Sized(last, (hidden,), ("num_hidden_layers", layers)),
    ]


def siglip(family: VilaSection, parallel: ParallelSection) -> tuple[TensorMapping, ...]:
    """The layers of the vision tower that run, as transformers' ``SiglipVisionModel`` has them."""
    ours, theirs = "encoder.vision_tower.", "vision_tower/vision_model."
    embeddings = tuple(
        DirectMapping(f"{ours}{name}", (f"{theirs}embeddings.{name}",), replicated=True)
        for name in (
            "patch_embedding.weight",
            "patch_embedding.bias",
            "position_embedding.weight",
        )
    )
    ours, theirs = f"{ours}decoder.layers.*.", f"{theirs}encoder.layers.*."
    heads, whole = (
        family.vision_num_attention_heads,
        not parallel.vision_tensor_parallel,
    )
    layers: list[TensorMapping] = []
    for kind in ("weight", "bias"):
        qkv = tuple(f"{theirs}self_attn.{which}_proj.{kind}" for which in "qkv")
        attended, output = f"{ours}self_attention.linear_proj.{kind}", f"{theirs}mlp.fc2.{kind}"
        # Biases behind a sum over ranks are whole.
        summed, everywhere = (RowParallel, whole) if kind == "weight" else (DirectMapping, True)
        layers += [
            DirectMapping(f"{ours}input_layernorm.{kind}", (f"{theirs}layer_norm1.{kind}",), True),
            QKV(f"{ours}self_attention.linear_qkv.{kind}", qkv, whole, heads, heads),
            summed(attended, (f"{theirs}self_attn.out_proj.{kind}",), everywhere),
            DirectMapping(
                f"{ours}pre_mlp_layernorm.{kind}", (f"{theirs}layer_norm2.{kind}",), True
            ),
            ColumnParallel(f"{ours}mlp.linear_fc1.{kind}", (f"{theirs}mlp.fc1.{kind}",), whole),
            summed(f"{ours}mlp.linear_fc2.{kind}", (output,), everywhere),
        ]
    return (*embeddings, *layers)


def projector(family: VilaSection) -> tuple[TensorMapping, ...]:
    """The projector, whatever its kind."""
    return tuple(
        DirectMapping(f"encoder.projector.{name}", (f"mm_projector/{name}",), replicated=True)
        for name in parameter_names(family.projector_type)
    )
