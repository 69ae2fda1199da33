"""VILA's weights on both sides: SigLIP tower, ``mlp_downsample`` projector, Qwen2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_longrl.checkpoint.table import (
    QKV,
    Direct,
    GatedMLP,
    RowParallel,
    Table,
    TensorMapping,
    Tied,
    VocabParallel,
)
from megatron_longrl.models.vila.siglip import layers_to_run

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def mapping_table(config: Config) -> Table:
    """All parameters of a VILA model.

    Raises:
        ValueError: the vocabulary's size is not known yet.
    """
    return Table(
        entries=(*qwen2(config), *siglip(config), *projector()),
        layers={"llm": config.num_layers, "vision_tower": layers_to_run(config)},
        ignored=("rotary_emb.inv_freq", "embeddings.position_ids"),
    )


def qwen2(config: Config) -> tuple[TensorMapping, ...]:
    """The language model, as transformers' ``Qwen2ForCausalLM`` names it."""
    if config.vocab_size is None:
        raise ValueError("the mapping needs vocab_size: take the tokenizer's")
    padded = config.padded_vocab_size(config.vocab_size)
    heads, groups = config.num_attention_heads, config.num_query_groups
    ours, theirs = "language_model.decoder.layers.*.", "llm/model.layers.*."
    embedding, head = "llm/model.embed_tokens.weight", "llm/lm_head.weight"
    attention = tuple(
        QKV(
            f"{ours}self_attention.linear_qkv.{kind}",
            tuple(f"{theirs}self_attn.{which}_proj.{kind}" for which in "qkv"),
            num_heads=heads,
            num_query_groups=groups,
        )
        for kind in (("weight", "bias") if config.add_qkv_bias else ("weight",))
    )
    # Transformer Engine fuses the norms with the linear layers behind them.
    before_attention, before_mlp = "input_layernorm.", "pre_mlp_layernorm."
    if config.transformer_impl == "transformer_engine":
        before_attention = "self_attention.linear_qkv.layer_norm_"
        before_mlp = "mlp.linear_fc1.layer_norm_"
    output_layer = "language_model.output_layer.weight"
    return (
        VocabParallel(
            "language_model.embedding.word_embeddings.weight",
            (embedding,),
            vocab_size=config.vocab_size,
            padded_vocab_size=padded,
        ),
        Direct(f"{ours}{before_attention}weight", (f"{theirs}input_layernorm.weight",)),
        *attention,
        RowParallel(
            f"{ours}self_attention.linear_proj.weight",
            (f"{theirs}self_attn.o_proj.weight",),
        ),
        Direct(
            f"{ours}{before_mlp}weight",
            (f"{theirs}post_attention_layernorm.weight",),
        ),
        GatedMLP(
            f"{ours}mlp.linear_fc1.weight",
            (f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight"),
        ),
        RowParallel(f"{ours}mlp.linear_fc2.weight", (f"{theirs}mlp.down_proj.weight",)),
        Direct("language_model.decoder.final_layernorm.weight", ("llm/model.norm.weight",)),
        VocabParallel(
            output_layer,
            (head,),
            vocab_size=config.vocab_size,
            padded_vocab_size=padded,
        )
        if config.untie_embeddings_and_output_weights
        else Tied(
            output_layer,
            (embedding,),
            vocab_size=config.vocab_size,
            padded_vocab_size=padded,
            alias=head,
        ),
    )


def siglip(config: Config) -> tuple[TensorMapping, ...]:
    """The layers of the vision tower that run, as transformers' ``SiglipVisionModel`` has them."""
    ours, theirs = "encoder.vision_tower.", "vision_tower/vision_model."
    embeddings = tuple(
        Direct(f"{ours}{name}", (f"{theirs}embeddings.{name}",), replicated=True)
        for name in (
            "patch_embedding.weight",
            "patch_embedding.bias",
            "position_embedding.weight",
        )
    )
    ours, theirs = f"{ours}decoder.layers.*.", f"{theirs}encoder.layers.*."
    heads = config.vision_num_attention_heads
    layers: list[TensorMapping] = []
    for kind in ("weight", "bias"):
        qkv = tuple(f"{theirs}self_attn.{which}_proj.{kind}" for which in "qkv")
        layers += [
            Direct(f"{ours}input_layernorm.{kind}", (f"{theirs}layer_norm1.{kind}",), True),
            QKV(f"{ours}self_attention.linear_qkv.{kind}", qkv, True, heads, heads),
            Direct(
                f"{ours}self_attention.linear_proj.{kind}",
                (f"{theirs}self_attn.out_proj.{kind}",),
                True,
            ),
            Direct(
                f"{ours}pre_mlp_layernorm.{kind}",
                (f"{theirs}layer_norm2.{kind}",),
                True,
            ),
            Direct(f"{ours}mlp.linear_fc1.{kind}", (f"{theirs}mlp.fc1.{kind}",), True),
            Direct(f"{ours}mlp.linear_fc2.{kind}", (f"{theirs}mlp.fc2.{kind}",), True),
        ]
    return (*embeddings, *layers)


def projector() -> tuple[TensorMapping, ...]:
    """The projector: a LayerNorm and two linear layers around a GELU."""
    return tuple(
        Direct(
            f"encoder.projector.layers.{layer}.{kind}",
            (f"mm_projector/layers.{layer}.{kind}",),
            replicated=True,
        )
        for layer in (1, 2, 4)
        for kind in ("weight", "bias")
    )
